//! A radix tree over byte strings, laid out in three arrays.
//!
//! ```text
//! keys /a, /ab, /b      nodes   0 ""  1 "/"  2 "a" (/a)  3 "b" (/b)  4 "b" (/ab)
//!                       labels  "/abb"        firsts  "./abb"
//! ```
//!
//! Nodes are in breadth-first order, so the children of one are neighbours, and those of the
//! next node follow. What starts a node's label or children therefore ends its predecessor's.

use std::{collections::BTreeMap, marker::PhantomData, ops::Range};

/// Values by key; finds every key that a text has at its end `E`.
#[derive(Clone)]
pub(super) struct Radix<E, T> {
    /// Empty without keys; else the root first, and behind the last node one that only ends it.
    nodes: Box<[Node<T>]>,
    /// The label of every node, what leads to it from its parent, in the order of nodes.
    labels: Box<[u8]>,
    /// The byte of every node's label that the text has next, for the choice of a child; the
    /// root's, which has none, is zero.
    firsts: Box<[u8]>,
    end: PhantomData<E>,
}

#[derive(Clone)]
struct Node<T> {
    /// Where its label starts.
    label: usize,
    /// Its first child.
    children: usize,
    /// Of the key that ends here.
    value: Option<T>,
}

/// An end of a text, where a walk along it starts.
pub(super) trait End {
    /// Turns a text round so that it starts with this end, or back again.
    fn turn(text: &mut [u8]);

    /// The byte at this end.
    fn first(text: &[u8]) -> Option<&u8>;

    /// The text without `label` at this end, whose first byte is known to be there; `None` when
    /// something else follows.
    fn strip<'t>(text: &'t [u8], label: &[u8]) -> Option<&'t [u8]>;
}

/// How a text begins.
#[derive(Clone)]
pub(super) struct Front;

/// How a text ends.
#[derive(Clone)]
pub(super) struct Back;

/// Keys that share their first bytes, as many as `depth`, and become one node.
struct Branch {
    keys: Range<usize>,
    depth: usize,
}

impl<E: End, T> Radix<E, T> {
    /// Takes time about linear in the bytes of all keys, and no recursion.
    pub(super) fn new<'k>(entries: impl IntoIterator<Item = (&'k str, T)>) -> Self {
        let turned = entries.into_iter().map(|(key, value)| {
            let mut key = key.as_bytes().to_vec();
            E::turn(&mut key);
            (key, value)
        });
        let keys: BTreeMap<_, _> = turned.collect();
        let (keys, values): (Vec<_>, Vec<_>) = keys.into_iter().unzip();
        if keys.is_empty() {
            return Self::default();
        }
        let mut values: Vec<_> = values.into_iter().map(Some).collect();
        let mut nodes = vec![Node::at(0)];
        let (mut labels, mut firsts) = (Vec::new(), vec![0]);
        let mut branches = vec![Branch {
            keys: 0..keys.len(),
            depth: 0,
        }];
        // Each branch is one node, at the same index.
        let mut at = 0;
        while at < branches.len() {
            nodes[at].children = nodes.len();
            let depth = branches[at].depth;
            let mut rest = branches[at].keys.clone();
            // In order, the key that ends here comes before those that go on.
            if keys[rest.start].len() == depth {
                nodes[at].value = values[rest.start].take();
                rest.start += 1;
            }
            while !rest.is_empty() {
                let branch = first_branch(&keys, &rest, depth);
                let label = &keys[rest.start][depth..branch.depth];
                nodes.push(Node::at(labels.len()));
                firsts.push(label[0]);
                labels.extend_from_slice(label);
                E::turn(&mut labels[nodes[nodes.len() - 1].label..]);
                rest.start = branch.keys.end;
                branches.push(branch);
            }
            at += 1;
        }
        let mut end = Node::at(labels.len());
        end.children = nodes.len();
        nodes.push(end);
        Self {
            nodes: nodes.into(),
            labels: labels.into(),
            firsts: firsts.into(),
            end: PhantomData,
        }
    }

    /// Calls `visit` for each key that the text has at this end, shortest first, with its value
    /// and how many bytes of the text are left beyond it.
    pub(super) fn walk<'a>(&'a self, text: &[u8], mut visit: impl FnMut(&'a T, usize)) {
        let mut rest = text;
        let mut at = 0;
        while let [node, next, ..] = &self.nodes[at..] {
            if let Some(value) = &node.value {
                visit(value, rest.len());
            }
            let children = node.children..next.children;
            let Some(first) = E::first(rest) else {
                return;
            };
            let Ok(child) = self.firsts[children.clone()].binary_search(first) else {
                return;
            };
            at = children.start + child;
            let label = &self.labels[self.nodes[at].label..self.nodes[at + 1].label];
            let Some(left) = E::strip(rest, label) else {
                return;
            };
            rest = left;
        }
    }
}

impl End for Front {
    fn turn(_text: &mut [u8]) {}

    fn first(text: &[u8]) -> Option<&u8> {
        text.first()
    }

    fn strip<'t>(text: &'t [u8], label: &[u8]) -> Option<&'t [u8]> {
        match label {
            [_known] => text.get(1..),
            _ => text.strip_prefix(label),
        }
    }
}

impl End for Back {
    fn turn(text: &mut [u8]) {
        text.reverse();
    }

    fn first(text: &[u8]) -> Option<&u8> {
        text.last()
    }

    fn strip<'t>(text: &'t [u8], label: &[u8]) -> Option<&'t [u8]> {
        match (label, text) {
            ([_known], [left @ .., _last]) => Some(left),
            _ => text.strip_suffix(label),
        }
    }
}

impl<T> Node<T> {
    fn at(label: usize) -> Self {
        Self {
            label,
            children: 0,
            value: None,
        }
    }
}

impl<E, T> Default for Radix<E, T> {
    fn default() -> Self {
        Self {
            nodes: Box::default(),
            labels: Box::default(),
            firsts: Box::default(),
            end: PhantomData,
        }
    }
}

/// Those of the sorted keys `rest` that have the same byte at `depth` as the first, with all
/// the bytes that they share. All of `rest` are longer than `depth`.
fn first_branch(keys: &[Vec<u8>], rest: &Range<usize>, depth: usize) -> Branch {
    let byte = keys[rest.start][depth];
    let count = keys[rest.clone()].partition_point(|key| key[depth] == byte);
    let end = rest.start + count;
    let (first, last) = (&keys[rest.start][depth..], &keys[end - 1][depth..]);
    let shared = first.iter().zip(last).position(|(a, b)| a != b);
    // In order, a key comes before those that it begins.
    let shared = shared.unwrap_or(first.len());
    Branch {
        keys: rest.start..end,
        depth: depth + shared,
    }
}
