//! The end of a run: everything is repaired, and the world must become whole.

use super::conditions::MS;
use super::machine::{GROUP, Machine, Waiter};
use super::{Todo, World, clients};
use althing_raft::ids::{Index, MemberId, Term};
use althing_raft::roster::{Footprint, ReadMode, Responders};
use althing_shard::{Done, Event, Refusal};
use althing_store::ops::{KeyRange, Range};
use bytes::Bytes;
use std::collections::BTreeSet;

/// After calm the cluster gets this long to become whole, in election timeouts. Two elections, a membership change
/// or two, and the clients' remaining work fit in many times over.
const CALM_ELECTION_TIMEOUTS: u64 = 60;
/// And in any case this long, for clients with much work left and slow disks.
const CALM_MIN: u64 = 120_000 * MS;
/// Operations that a client may still do then: on the slowest machines one takes seconds.
const CALM_OPERATIONS: u32 = 20;
/// How often a calm world is looked at.
const CALM_LOOK: u64 = 200 * MS;

impl World {
    /// Chaos is over: everything is repaired.
    pub(super) fn calm(&mut self) {
        self.trace.note(self.now, 0, "calm", &[], String::new);
        self.calm_at = Some(self.now);
        self.net.calm();
        self.clients.finish_soon(CALM_OPERATIONS);
        for machine in &mut self.machines {
            // Clocks keep to the bound again, if ever they did not.
            machine.clock.change(self.now, 0);
        }
        for machine in 0..self.machines.len() {
            self.machines[machine].paused_until = 0;
            self.machines[machine].slow = (0, 0);
            self.machines[machine].dies_at_install = None;
            self.machines[machine].disk.fill(false);
            self.start(machine);
        }
        self.later(CALM_LOOK, Todo::Look);
    }

    pub(super) fn look(&mut self) {
        match self.whole() {
            Ok(leader) if self.probes() == 0 => {
                self.compare_states(leader);
                for machine in 0..self.machines.len() {
                    let process = self.machines[machine].process.as_ref();
                    if let Some(view) = process.and_then(|process| process.host.view(GROUP)) {
                        self.counts.add_reads(view.raft.lease.counts);
                    }
                }
                self.done = true;
            }
            Ok(_) => self.later(CALM_LOOK, Todo::Look),
            Err(reason) => {
                let calm_at = self.calm_at.unwrap_or(self.now);
                let patience = u64::try_from(self.conditions.election_timeout.as_nanos()).expect("invariant: short")
                    * CALM_ELECTION_TIMEOUTS;
                if self.now - calm_at > patience.max(CALM_MIN) {
                    self.watch
                        .violation(format!("liveness: long after all is repaired, {reason}"));
                } else {
                    self.later(CALM_LOOK, Todo::Look);
                }
            }
        }
    }

    /// Asks every member for a read, until each has served one. How many are asked now.
    fn probes(&mut self) -> usize {
        let asked: Vec<usize> = (0..self.machines.len())
            .filter(|&number| self.machines[number].wanted && !self.probed.contains(&number))
            .collect();
        for &number in &asked {
            let Some(view) = self.machines[number]
                .process
                .as_ref()
                .and_then(|process| process.host.view(GROUP))
            else {
                continue;
            };
            let soft = view.raft.soft;
            let waiter = Waiter::Probe {
                term: soft.term,
                leader: soft.leader,
            };
            self.ask_for(waiter, number, |request, deadline| Event::Read {
                request,
                group: GROUP,
                footprint: Footprint::All,
                deadline,
            });
        }
        asked.len()
    }

    /// A member that follows the same leader all the while has no reason not to serve a read.
    pub(super) fn probed(&mut self, number: usize, at: (Term, Option<MemberId>), result: Result<Done, Refusal>) {
        let machine = &self.machines[number];
        let view = machine.process.as_ref().and_then(|process| process.host.view(GROUP));
        match result {
            Ok(_) => {
                self.probed.insert(number);
            }
            Err(refusal) => {
                let soft = view.map(|view| view.raft.soft);
                if soft.is_some_and(|soft| (soft.term, soft.leader) == at) {
                    self.watch.violation(format!(
                        "liveness: all is repaired, and {} refuses a read: {refusal}",
                        machine.member
                    ));
                }
            }
        }
    }

    /// Whether everybody agrees on everything and all work is done; else what is missing.
    fn whole(&self) -> Result<usize, String> {
        let leader = self.leader().ok_or("nobody leads")?;
        let process = self.machines[leader].process.as_ref().ok_or("the leader is down")?;
        let view = process.host.view(GROUP).ok_or("the leader has no group")?;
        let config = &view.raft.soft.config;
        let wanted: BTreeSet<MemberId> = self
            .machines
            .iter()
            .filter(|machine| machine.wanted)
            .map(|machine| machine.member)
            .collect();
        if config.voters != wanted || !config.learners.is_empty() || config.is_joint() {
            return Err(format!("the configuration is {config:?} and should be {wanted:?}"));
        }
        let last: Index = view.raft.last.index;
        for machine in self.machines.iter().filter(|machine| machine.wanted) {
            let process = machine.process.as_ref().ok_or(format!("{} is down", machine.member))?;
            let seen = process.host.view(GROUP).ok_or("a group is missing")?;
            if seen.raft.soft.leader != Some(self.machines[leader].member) || seen.applied.index != last {
                return Err(format!(
                    "{} follows {:?} and has applied {}, the leader {} has {last}",
                    machine.member, seen.raft.soft.leader, seen.applied.index, self.machines[leader].member
                ));
            }
            if !process.open.is_empty() {
                return Err(format!("{} owes answers to {:?}", machine.member, process.open));
            }
        }
        // Under clocks beyond the bound a promise can be over before its holder has asked for the next one; and one that is over before
        // the answer comes over a slow network is worth nothing.
        if !self.conditions.wild()
            && self.conditions.outlives_a_round(view.raft.lease.reads.spec.lease)
            && view.raft.lease.reads.spec.mode == ReadMode::RosterLease
            && view.raft.lease.reads.spec.responders == Responders::All
            && let Some(closed) = self.machines.iter().find(|machine| {
                let seen = machine.process.as_ref().and_then(|process| process.host.view(GROUP));
                // Whoever hibernates has read locally before, and will again.
                machine.wanted && seen.is_none_or(|seen| !seen.raft.lease.open && !seen.raft.hibernates)
            })
        {
            return Err(format!("{} does not read locally", closed.member));
        }
        if !self.clients.idle() {
            return Err("clients are not done".to_owned());
        }
        if self.watch.last_committed() != last {
            return Err(format!("entry {last} is not committed"));
        }
        Ok(leader)
    }

    /// All members have applied the same, so all must hold the same.
    fn compare_states(&mut self, leader: usize) {
        let dump = |machine: &Machine| {
            let process = machine.process.as_ref()?;
            let range = process
                .mvcc
                .range(&Range::of(KeyRange::From(Bytes::new())))
                .ok()?
                .ok()?;
            Some((range, process.mvcc.applied()))
        };
        let Some(expected) = dump(&self.machines[leader]) else {
            return self.watch.violation("the leader's state cannot be read".to_owned());
        };
        for number in 0..self.machines.len() {
            if self.machines[number].wanted && dump(&self.machines[number]).as_ref() != Some(&expected) {
                let text = format!(
                    "{} and the leader have applied the same and hold different states",
                    self.machines[number].member
                );
                self.watch.violation(text);
            }
        }
        let ((_, range), _) = expected;
        for kv in range.kvs {
            self.final_state
                .insert(String::from_utf8_lossy(&kv.key).into_owned(), clients::seen(&kv));
        }
    }
}
