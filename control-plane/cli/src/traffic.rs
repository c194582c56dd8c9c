//! `heddle traffic get|set`: canary weights.

use clap::Subcommand;
use heddle_proto::v1::{
    GetSplitRequest, SetSplitRequest, SetSplitResponse, Split, Weight,
    traffic_client::TrafficClient,
};
use serde_json::{Value, json};
use tonic::{Code, transport::Channel};

use crate::{
    connect::Target,
    failure::Failure,
    output::{self, Format, Report},
};

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Show the weights of a service.
    Get {
        #[command(flatten)]
        service: Service,
    },
    /// Set the weights of a service's subsets; they sum to 100.
    Set {
        #[command(flatten)]
        service: Service,
        /// Such as `stable=95 canary=5`.
        #[arg(required = true, value_name = "SUBSET=PERCENT", value_parser = weight)]
        weights: Vec<Weight>,
        /// Return when the split is active in every sidecar that uses it, those included that
        /// have not come back to the control plane yet. Exit code 4 when it is not in time.
        #[arg(long)]
        wait: bool,
        /// How long `--wait` waits, in seconds, up to 600.
        #[arg(
            long,
            default_value_t = 60,
            value_name = "SECONDS",
            value_parser = clap::value_parser!(u32).range(1..=600)
        )]
        timeout: u32,
    },
}

#[derive(Debug, clap::Args)]
struct Service {
    /// Host of the service, short or fully qualified.
    service: String,
    /// Where a short name is looked up.
    #[arg(short, long, default_value = "default")]
    namespace: String,
    /// Name of the HTTP route, when several split the service.
    #[arg(long, default_value = "")]
    route: String,
}

pub(crate) async fn run(target: &Target, format: Format, args: Args) -> Result<(), Failure> {
    let mut traffic = TrafficClient::new(target.administrator().await?);
    match args.command {
        Command::Get { service } => {
            let request = GetSplitRequest {
                service: service.service,
                namespace: service.namespace,
                route: service.route,
            };
            let split = traffic
                .get_split(request)
                .await
                .map_err(Failure::of(&target.server))?
                .into_inner();
            output::print(format, &report(&split, Value::Null))
        }
        Command::Set {
            service,
            weights,
            wait,
            timeout,
        } => {
            let mut request = SetSplitRequest {
                service: service.service,
                namespace: service.namespace,
                route: service.route,
                weights,
                expected_revision: 0,
                wait_ms: 0,
            };
            let mut set = send(&mut traffic, target, request.clone()).await?;
            if wait {
                // The same once more, if it still is what is stored: that changes nothing.
                request.expected_revision = set.split.as_ref().map_or(0, |split| split.revision);
                request.wait_ms = u64::from(timeout) * 1000;
                output::complain(&awaiting(&set));
                set = send(&mut traffic, target, request).await?;
            }
            let progress = json!({
                "sidecarsAffected": set.sidecars_affected,
                "sidecarsActive": set.sidecars_active,
            });
            let split = set.split.unwrap_or_default();
            output::print(format, &report(&split, progress))?;
            if wait && format == Format::Table {
                output::line(&format!(
                    "active in {} of {} sidecars",
                    set.sidecars_active, set.sidecars_affected
                ));
            }
            Ok(())
        }
    }
}

async fn send(
    traffic: &mut TrafficClient<Channel>,
    target: &Target,
    request: SetSplitRequest,
) -> Result<SetSplitResponse, Failure> {
    let set = traffic.set_split(request).await;
    let set = set.map_err(|status| match status.code() {
        Code::DeadlineExceeded => Failure::Late(status),
        _ => Failure::of(&target.server)(status),
    })?;
    Ok(set.into_inner())
}

fn awaiting(set: &SetSplitResponse) -> String {
    let awaited = set.sidecars_affected - set.sidecars_active.min(set.sidecars_affected);
    format!(
        "stored; waiting for {awaited} of {} sidecars",
        set.sidecars_affected
    )
}

fn report(split: &Split, progress: Value) -> Report {
    let rows = split
        .weights
        .iter()
        .map(|weight| vec![weight.subset.clone(), format!("{} %", weight.percent)]);
    let weights: serde_json::Map<String, Value> = split
        .weights
        .iter()
        .map(|weight| (weight.subset.clone(), json!(weight.percent)))
        .collect();
    Report {
        heading: &["SUBSET", "WEIGHT"],
        rows: rows.collect(),
        data: json!({
            "service": split.service,
            "namespace": split.namespace,
            "virtualService": split.virtual_service,
            "route": split.route,
            "revision": split.revision,
            "weights": weights,
            "progress": progress,
        }),
        when_empty: "no subsets",
    }
}

fn weight(text: &str) -> Result<Weight, String> {
    let (subset, percent) = text
        .split_once('=')
        .ok_or("is not of the form SUBSET=PERCENT")?;
    let percent: u32 = percent
        .trim_end_matches('%')
        .parse()
        .map_err(|_not_a_number| "the weight is not a whole number of percent")?;
    if subset.is_empty() || percent > 100 {
        return Err("a weight is SUBSET=PERCENT with 0 to 100 percent".to_owned());
    }
    Ok(Weight {
        subset: subset.to_owned(),
        percent,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_weight_is_a_subset_and_a_percentage() {
        let ok = |text| weight(text).map(|weight| (weight.subset, weight.percent));
        assert_eq!(ok("stable=95"), Ok(("stable".to_owned(), 95)));
        assert_eq!(ok("canary=5%"), Ok(("canary".to_owned(), 5)));
        for bad in ["stable", "=5", "a=101", "a=-1", "a=1.5", "a=", "a=x"] {
            assert!(weight(bad).is_err(), "{bad}");
        }
    }
}
