//! Which groups have a label of their own among a node's metrics.
//!
//! A node may hold thousands of groups, and a series for each of them and of everything that is measured would be more than a metrics
//! system takes. The first few are named; the others share one label.

use prometheus_client::encoding::{EncodeLabelValue, EncodeMetric, LabelValueEncoder, MetricEncoder};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::family::{Family, MetricConstructor};
use prometheus_client::metrics::gauge::Gauge;
use std::collections::BTreeSet;
use std::fmt::{self, Write};
use std::hash::Hash;
use std::ops::Deref;
use std::sync::{Arc, PoisonError, RwLock};

/// Groups with a label of their own: what fits on a dashboard, at about 70 series each.
pub const SHARDS_LABELLED_MAX: usize = 32;
/// Stands for all others. No group has this id: they are numbered from zero.
pub(crate) const OTHERS: u64 = u64::MAX;

/// Labels that name a group.
pub trait OfShard: Clone + Hash + Eq {
    /// The group's id.
    fn shard(&mut self) -> &mut u64;
}

/// The value of a `shard` label.
#[derive(Debug)]
pub(crate) struct ShardValue(pub(crate) u64);

impl EncodeLabelValue for ShardValue {
    fn encode(&self, encoder: &mut LabelValueEncoder<'_>) -> fmt::Result {
        match self.0 {
            OTHERS => encoder.write_str("other"),
            shard => write!(encoder, "{shard}"),
        }
    }
}

/// What gauges of several groups come to under one label.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Fold {
    /// All together.
    Sum,
    /// The largest.
    Max,
    /// The smallest: of yes and no, whether all say yes.
    Min,
}

/// The groups that are named. Clones are the same list.
#[derive(Clone, Debug, Default)]
pub struct Named(Arc<RwLock<BTreeSet<u64>>>);

impl Named {
    /// Gives a group a name if there is one left.
    pub(crate) fn add(&self, shard: u64) {
        let known = self.has(shard);
        if !known {
            let mut all = self.0.write().unwrap_or_else(PoisonError::into_inner);
            if all.len() < SHARDS_LABELLED_MAX {
                all.insert(shard);
            }
        }
    }

    /// Takes the names of all groups but these, and gives what is free to the first of them. Says which lost theirs.
    pub(crate) fn keep(&self, live: impl Iterator<Item = u64> + Clone) -> Vec<u64> {
        let live: BTreeSet<u64> = live.collect();
        let mut all = self.0.write().unwrap_or_else(PoisonError::into_inner);
        let gone = all.difference(&live).copied().collect();
        all.retain(|shard| live.contains(shard));
        for shard in live {
            if all.len() >= SHARDS_LABELLED_MAX {
                break;
            }
            all.insert(shard);
        }
        gone
    }

    /// The labels that there are.
    fn labels(&self) -> Vec<u64> {
        let all = self.0.read().unwrap_or_else(PoisonError::into_inner);
        all.iter().copied().chain([OTHERS]).collect()
    }

    fn has(&self, shard: u64) -> bool {
        self.0.read().unwrap_or_else(PoisonError::into_inner).contains(&shard)
    }
}

/// A family of metrics of groups, with few labels however many groups there are.
#[derive(Debug)]
pub struct PerShard<L, M, C = fn() -> M> {
    family: Family<L, M, C>,
    named: Named,
}

impl<L, M, C: Clone> Clone for PerShard<L, M, C> {
    fn clone(&self) -> Self {
        Self {
            family: self.family.clone(),
            named: self.named.clone(),
        }
    }
}

impl<L: OfShard, M: Clone, C: MetricConstructor<M>> PerShard<L, M, C> {
    pub(crate) fn new(named: &Named, constructor: C) -> Self {
        Self {
            family: Family::new_with_constructor(constructor),
            named: named.clone(),
        }
    }

    /// The metric of a group, or the one that it shares with others.
    pub fn get_or_create(&self, labels: &L) -> impl Deref<Target = M> {
        self.family.get_or_create(&self.bounded(labels))
    }

    /// As `get_or_create`, to keep.
    #[must_use]
    pub fn get_or_create_owned(&self, labels: &L) -> M {
        self.family.get_or_create_owned(&self.bounded(labels))
    }

    /// Forgets all.
    pub(crate) fn clear(&self) {
        self.family.clear();
    }

    /// Forgets the metric with exactly these labels.
    pub(crate) fn remove(&self, labels: &L) {
        self.family.remove(labels);
    }

    /// What the metrics with these labels come to, over all groups.
    pub fn sum<N: std::iter::Sum>(&self, mut labels: L, read: impl Fn(&M) -> N) -> N {
        let all = self.named.labels().into_iter().filter_map(|shard| {
            *labels.shard() = shard;
            self.family.get(&labels).map(|metric| read(&metric))
        });
        all.sum()
    }

    fn bounded(&self, labels: &L) -> L {
        let mut labels = labels.clone();
        let shard = *labels.shard();
        if !self.named.has(shard) {
            *labels.shard() = OTHERS;
        }
        labels
    }
}

impl<L: OfShard, C: MetricConstructor<Gauge>> PerShard<L, Gauge, C> {
    /// Says what a group has, where nothing was said since the last `clear` but by others that share its label.
    pub(crate) fn fold(&self, labels: L, value: i64, fold: Fold) {
        let labels = self.bounded(&labels);
        let before = self.family.get(&labels).map(|gauge| gauge.get());
        let value = match (before, fold) {
            (None, _) => value,
            (Some(before), Fold::Sum) => before.saturating_add(value),
            (Some(before), Fold::Max) => before.max(value),
            (Some(before), Fold::Min) => before.min(value),
        };
        self.family.get_or_create(&labels).set(value);
    }
}

impl<L, M, C> EncodeMetric for PerShard<L, M, C>
where
    Family<L, M, C>: EncodeMetric,
{
    fn encode(&self, encoder: MetricEncoder<'_>) -> fmt::Result {
        self.family.encode(encoder)
    }

    fn metric_type(&self) -> MetricType {
        self.family.metric_type()
    }

    fn is_empty(&self) -> bool {
        self.family.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_groups_are_named_and_names_of_those_that_left_are_given_again() {
        let named = Named::default();
        let most = SHARDS_LABELLED_MAX as u64;
        (0..most + 10).for_each(|shard| named.add(shard));
        assert!(named.has(0) && named.has(most - 1) && !named.has(most));
        assert_eq!(named.labels().len(), SHARDS_LABELLED_MAX + 1);
        // Two leave, and the first ones without a name follow them.
        let live = (0..most + 10).filter(|shard| ![3, 5].contains(shard));
        assert_eq!(named.keep(live), [3, 5]);
        assert!(!named.has(3) && named.has(most) && named.has(most + 1) && !named.has(most + 2));
    }
}
