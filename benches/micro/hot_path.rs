//! Time of the policies' decisions.

mod decisions;

use criterion::{Criterion, criterion_group, criterion_main};

fn decide(criterion: &mut Criterion) {
    for mut decision in decisions::all() {
        criterion.bench_function(&decision.name, |bench| bench.iter(&mut decision.run));
    }
}

criterion_group!(hot_path, decide);
criterion_main!(hot_path);
