//! Finds the first rule that holds without judging all of them.
//!
//! Every rule that asks for a text is *guarded* by it: it cannot hold unless the text is
//! covered by one of the rule's patterns. One walk along each subject's text therefore gives
//! all rules that may hold, and only those are judged, whole. Of the texts that a rule asks for,
//! all of which must be there, those guard it that the fewest rules have in common: principals
//! where each rule is for another peer, paths where each is for another path.
//!
//! What costs more the more rules there are: rules without a guard (only negative conditions,
//! conditions on headers, expressions, or none), and on TCP the DENY rules whose guard is HTTP,
//! each of which may hold there. Both are judged in order, as far as the best rule found.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

use super::{
    Condition, Rule,
    judge::{Facts, Subject, Text, text},
};
use crate::{
    patterns::{Pattern, Patterns, lowest},
    route::ValueMatch,
};

/// Rules of one action, in order.
#[derive(Clone, Debug, Default)]
pub(super) struct Indexed {
    rules: Vec<Rule>,
    /// At most one for each subject.
    guards: Vec<Guard>,
    /// Rules, by position, that every request may fulfil as far as guards tell; ascending.
    unguarded: Vec<usize>,
}

/// The rules that ask for a text of one subject; by position, lists ascend.
#[derive(Clone, Debug)]
struct Guard {
    subject: Subject,
    patterns: Patterns<Vec<usize>>,
    /// All of them, for when the text is not known.
    rules: Vec<usize>,
}

/// A text that a rule asks for.
#[derive(Clone, PartialEq, Eq, Hash)]
struct Ask {
    subject: Subject,
    part: Part,
    text: Arc<str>,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash)]
enum Part {
    Whole,
    Begin,
    End,
}

/// Texts of which one must be there for a condition not to be certainly false.
struct Need {
    asks: Vec<Ask>,
    /// How many times the most frequent of them is asked for, over all rules.
    shared: usize,
    /// Whether all of them are whole texts.
    is_whole: bool,
}

impl Indexed {
    /// Takes time and memory about linear in the texts of all rules.
    pub(super) fn new(rules: Vec<Rule>) -> Self {
        if rules.len() <= FEW_MAX {
            return Self {
                guards: Vec::new(),
                unguarded: (0..rules.len()).collect(),
                rules,
            };
        }
        let mut counts = HashMap::new();
        for rule in &rules {
            count(&rule.when, &mut counts);
        }
        let mut asks: BTreeMap<Subject, Vec<(Ask, usize)>> = BTreeMap::new();
        let mut unguarded = Vec::new();
        for (position, rule) in rules.iter().enumerate() {
            let Some(need) = need(&rule.when, &counts) else {
                unguarded.push(position);
                continue;
            };
            for ask in need.asks {
                let of_subject = asks.entry(ask.subject).or_default();
                of_subject.push((ask, position));
            }
        }
        let guards = asks.into_iter();
        Self {
            guards: guards
                .map(|(subject, asks)| Guard::new(subject, &asks))
                .collect(),
            rules,
            unguarded,
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.rules.is_empty()
    }

    /// The first rule that `holds`, which must be false of a rule that certainly does not.
    pub(super) fn first(&self, facts: &Facts<'_>, holds: impl Fn(&Rule) -> bool) -> Option<&Rule> {
        let fits = |position: usize| holds(&self.rules[position]);
        let mut best = self.rules.len();
        for guard in &self.guards {
            match facts.text(guard.subject) {
                Text::Known(text) => {
                    let covering = |some: &Vec<usize>| best = lowest(some, best, fits);
                    guard.patterns.visit(text, covering);
                }
                Text::Absent => {}
                Text::Unread => best = lowest(&guard.rules, best, fits),
            }
        }
        best = lowest(&self.unguarded, best, fits);
        self.rules.get(best)
    }
}

impl Guard {
    fn new(subject: Subject, asks: &[(Ask, usize)]) -> Self {
        let patterns = asks
            .iter()
            .map(|(ask, position)| (ask.pattern(), *position));
        let mut rules: Vec<_> = asks.iter().map(|(_, position)| *position).collect();
        rules.dedup();
        Self {
            subject,
            patterns: Patterns::new(patterns),
            rules,
        }
    }
}

/// Counts every text that is asked for, however it is nested.
fn count(condition: &Condition, counts: &mut HashMap<Ask, usize>) {
    match condition {
        Condition::All(all) | Condition::Any(all) => {
            for one in all {
                count(one, counts);
            }
        }
        Condition::Always
        | Condition::Not(_)
        | Condition::Principal(_)
        | Condition::Namespace(_)
        | Condition::SourceIp(_)
        | Condition::Port(_)
        | Condition::Method(_)
        | Condition::Path(_)
        | Condition::Authority(_)
        | Condition::Header(..) => {
            if let Some(ask) = Ask::new(condition) {
                *counts.entry(ask).or_default() += 1;
            }
        }
    }
}

/// `None` when no text tells that the condition is false.
fn need(condition: &Condition, counts: &HashMap<Ask, usize>) -> Option<Need> {
    match condition {
        Condition::All(all) => {
            let needs = all.iter().filter_map(|one| need(one, counts));
            needs.min_by_key(|need| (need.shared, Reverse(need.is_whole), need.asks.len()))
        }
        Condition::Any(any) => {
            let nothing = Need {
                asks: vec![],
                shared: 0,
                is_whole: true,
            };
            any.iter()
                .try_fold(nothing, |all, one| Some(all.or(need(one, counts)?)))
        }
        Condition::Always
        | Condition::Not(_)
        | Condition::Principal(_)
        | Condition::Namespace(_)
        | Condition::SourceIp(_)
        | Condition::Port(_)
        | Condition::Method(_)
        | Condition::Path(_)
        | Condition::Authority(_)
        | Condition::Header(..) => {
            let ask = Ask::new(condition)?;
            Some(Need {
                shared: counts.get(&ask).copied().unwrap_or(0),
                is_whole: ask.part == Part::Whole,
                asks: vec![ask],
            })
        }
    }
}

impl Need {
    fn or(mut self, other: Self) -> Self {
        self.asks.extend(other.asks);
        Self {
            asks: self.asks,
            shared: self.shared.max(other.shared),
            is_whole: self.is_whole && other.is_whole,
        }
    }
}

impl Ask {
    /// `None` when the condition is not on a text, or not by a pattern.
    fn new(condition: &Condition) -> Option<Self> {
        let (subject, value) = text(condition)?;
        let (part, text) = match value {
            ValueMatch::Present => (Part::Begin, "".into()),
            ValueMatch::Exact(text) => (Part::Whole, text),
            ValueMatch::Prefix(text) => (Part::Begin, text),
            ValueMatch::Suffix(text) => (Part::End, text),
            ValueMatch::Contains(_) | ValueMatch::Regex(_) => return None,
        };
        Some(Self {
            subject,
            part,
            text,
        })
    }

    fn pattern(&self) -> Pattern<'_> {
        match self.part {
            Part::Whole => Pattern::Exact(&self.text),
            Part::Begin => Pattern::Prefix(&self.text),
            Part::End => Pattern::Suffix(&self.text),
        }
    }
}

/// So few rules are judged in fewer instructions than it takes to find which (`benches/micro`,
/// `decide`).
const FEW_MAX: usize = 4;
