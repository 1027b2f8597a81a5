//! The search for a legal order: Wing and Gong's algorithm with Lowe's memoisation
//! (Wing, Gong: "Testing and verifying concurrent objects", 1993; Lowe: "Testing for linearizability", 2017).
//!
//! Generic over the object, and knows nothing of keys: the caller partitions (Herlihy and Wing's locality
//! theorem: a history is linearizable if each object's part is). Iterative, so that long histories do not
//! need a deep stack, and bounded: out of budget is its own answer.

use std::collections::BTreeSet;

/// A sequential object: what each call does to a state, or that it cannot have happened there.
pub(crate) trait Model {
    /// The object's state.
    type State: Clone + Ord;
    /// A call together with what is known of its answer.
    type Call: Eq;

    /// The state after `call`, or `None` if its answer is impossible in `state`.
    fn step(&self, state: &Self::State, call: &Self::Call) -> Option<Self::State>;

    /// The lowest rank that a call can still have after `state`: a state that waits for a lower one is dead.
    fn lowest_rank(&self, state: &Self::State) -> u64;
}

/// A call and when it happened.
#[derive(Clone, Debug)]
pub(crate) struct Interval<C> {
    /// What was called, and the answer.
    pub(crate) call: C,
    /// It took effect after this moment.
    pub(crate) invoked: u64,
    /// It took effect before this moment; `None`: no bound.
    pub(crate) returned: Option<u64>,
    /// Whether it took effect at all for certain.
    pub(crate) required: bool,
    /// Where it stands among the ranked calls, if its answer says so: lower first, equal in any order.
    pub(crate) rank: Option<u64>,
}

/// What the search found.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Found {
    /// A legal order exists.
    Order,
    /// None does.
    NoOrder,
    /// The budget ran out first.
    GaveUp,
}

/// Looks for a legal order of all required calls and any of the others.
/// `budget` bounds the states visited (one is a few hundred bytes of memory).
pub(crate) fn search<M: Model>(model: &M, initial: &M::State, calls: &[Interval<M::Call>], budget: usize) -> Found {
    Search::new(model, calls).run(initial, budget)
}

struct Search<'a, M: Model> {
    model: &'a M,
    calls: &'a [Interval<M::Call>],
    /// Required calls by invocation.
    required: Vec<usize>,
    /// The ranked ones among them, by rank.
    ranked: Vec<usize>,
    /// Optional calls by invocation, each with its class: members of a class are interchangeable.
    optional: Vec<(usize, usize)>,
    done: Vec<bool>,
    left: usize,
    classes: usize,
}

/// One step of the order under construction.
struct Frame<S> {
    state: S,
    /// Fingerprint of the set of calls done.
    done: u128,
    /// Calls that may come next; the last is tried first.
    candidates: Vec<usize>,
    /// The call that led here.
    by: Option<usize>,
    /// Positions in `required` and `ranked` before which everything is done.
    required_from: usize,
    ranked_from: usize,
}

impl<'a, M: Model> Search<'a, M> {
    fn new(model: &'a M, calls: &'a [Interval<M::Call>]) -> Self {
        let by_invocation = |want: bool| {
            let mut ids: Vec<usize> = (0..calls.len()).filter(|&id| calls[id].required == want).collect();
            ids.sort_by_key(|&id| (calls[id].invoked, id));
            ids
        };
        let required = by_invocation(true);
        let mut ranked: Vec<usize> = required
            .iter()
            .copied()
            .filter(|&id| calls[id].rank.is_some())
            .collect();
        ranked.sort_by_key(|&id| (calls[id].rank, id));
        // Equal optional calls without an upper bound can swap places in any order, so trying the one
        // invoked first is enough. This keeps a pile of timed-out writes from costing 2^n.
        let mut representatives: Vec<usize> = Vec::new();
        let mut optional = Vec::new();
        for id in by_invocation(false) {
            let class = representatives.iter().position(|&other| {
                calls[other].call == calls[id].call && calls[other].returned.is_none() && calls[id].returned.is_none()
            });
            let class = class.unwrap_or_else(|| {
                representatives.push(id);
                representatives.len() - 1
            });
            optional.push((id, class));
        }
        let left = required.len();
        let classes = representatives.len();
        Self {
            model,
            calls,
            required,
            ranked,
            optional,
            done: vec![false; calls.len()],
            left,
            classes,
        }
    }

    fn run(mut self, initial: &M::State, budget: usize) -> Found {
        let mut visited: BTreeSet<(u128, M::State)> = BTreeSet::new();
        let mut stack = vec![self.frame(initial.clone(), 0, None, 0, 0)];
        while let Some(top) = stack.last_mut() {
            if self.left == 0 {
                return Found::Order;
            }
            let Some(id) = top.candidates.pop() else {
                let undone = stack.pop().and_then(|frame| frame.by);
                if let Some(id) = undone {
                    self.done[id] = false;
                    self.left += usize::from(self.calls[id].required);
                }
                continue;
            };
            let Some(state) = self.model.step(&top.state, &self.calls[id].call) else {
                continue;
            };
            let done = top.done ^ fingerprint(id);
            if visited.len() >= budget {
                return Found::GaveUp;
            }
            if !visited.insert((done, state.clone())) {
                continue;
            }
            let (required_from, ranked_from) = (top.required_from, top.ranked_from);
            self.done[id] = true;
            self.left -= usize::from(self.calls[id].required);
            let frame = self.frame(state, done, Some(id), required_from, ranked_from);
            stack.push(frame);
        }
        Found::NoOrder
    }

    /// The frame of a state: which calls may come next there.
    fn frame(
        &self,
        state: M::State,
        done: u128,
        by: Option<usize>,
        mut required_from: usize,
        mut ranked_from: usize,
    ) -> Frame<M::State> {
        while self.required.get(required_from).is_some_and(|&id| self.done[id]) {
            required_from += 1;
        }
        while self.ranked.get(ranked_from).is_some_and(|&id| self.done[id]) {
            ranked_from += 1;
        }
        let lowest_rank = self.ranked.get(ranked_from).and_then(|&id| self.calls[id].rank);
        if lowest_rank.is_some_and(|rank| rank < self.model.lowest_rank(&state)) {
            return Frame {
                state,
                done,
                candidates: Vec::new(),
                by,
                required_from,
                ranked_from,
            };
        }
        // A call may come next unless an undone required one returned before it was invoked.
        let mut bound = u64::MAX;
        let mut next = Vec::new();
        for &id in &self.required[required_from..] {
            let call = &self.calls[id];
            if call.invoked > bound {
                break;
            }
            if !self.done[id] {
                bound = bound.min(call.returned.unwrap_or(u64::MAX));
                next.push(id);
            }
        }
        next.retain(|&id| self.calls[id].rank.is_none() || self.calls[id].rank == lowest_rank);
        let mut candidates = Vec::new();
        let mut tried = vec![false; self.classes];
        for &(id, class) in &self.optional {
            if self.calls[id].invoked > bound {
                break;
            }
            if !self.done[id] && !tried[class] {
                tried[class] = true;
                candidates.push(id);
            }
        }
        // Popped from the back: required calls first, the earliest first.
        candidates.reverse();
        next.reverse();
        candidates.extend(next);
        Frame {
            state,
            done,
            candidates,
            by,
            required_from,
            ranked_from,
        }
    }
}

/// 128 bits for a call's id. Sets of calls are told apart by the XOR of these: two sets of one search
/// (at most 2^24 of them) collide with a probability under 2^-80.
fn fingerprint(id: usize) -> u128 {
    let seed = u64::try_from(id).expect("invariant: usize fits u64");
    let high = crate::rng::mix(seed ^ 0x9e37_79b9_7f4a_7c15);
    let low = crate::rng::mix(seed.wrapping_add(0xd1b5_4a32_d192_ed03));
    (u128::from(high) << 64) | u128::from(low)
}
