//! What travels between machines: frames of messages in production's wire format, and snapshots.

use super::conditions::MS;
use super::machine::{GROUP, Parcel};
use super::trace::describe;
use super::{Todo, World};
use crate::mutant::Sabotage;
use althing_raft::ids::{MemberId, Term};
use althing_raft::message::{Body, Message};
use althing_shard::Event;
use althing_shard::frame::{Frame, HEADER_BYTES, Header, messages_to_frames};
use bytes::Bytes;

impl World {
    pub(super) fn send(&mut self, number: usize, to: MemberId, messages: &[Message]) {
        for message in messages {
            self.watch.sent(self.now, message, self.conditions.leases.is_some());
            let local = self.machines[number].clock.local(self.now);
            if let Some(text) = self.leases.sent(message, local) {
                self.lease_broken(text);
            }
            self.trace
                .note(self.now, number as u64, "send", &[to.0, message.term.0], || {
                    describe(message)
                });
        }
        let Some(target) = self.machine_of(to) else {
            return;
        };
        let (frames, too_long) = messages_to_frames(messages);
        if too_long > 0 {
            self.watch
                .violation(format!("{too_long} messages do not fit into a frame"));
        }
        let forwards = messages
            .iter()
            .filter(|message| matches!(message.body, Body::Forward { .. }))
            .count() as u64;
        self.counts.forwards += forwards;
        let once = forwards > 0 && !self.breaks(Sabotage::DuplicateForward);
        for frame in frames {
            for delay in self.net.send(number, target, once) {
                self.later(
                    delay,
                    Todo::Arrive {
                        to,
                        frame: frame.clone(),
                    },
                );
            }
            if forwards > 0 && self.breaks(Sabotage::DuplicateForward) {
                self.later(30 * MS, Todo::Arrive { to, frame });
            }
        }
    }

    pub(super) fn arrive(&mut self, to: MemberId, frame: Bytes) {
        let Some(number) = self.machine_of(to) else {
            return;
        };
        if self.machines[number].process.is_none() {
            return;
        }
        let (head, body) = frame.split_at(HEADER_BYTES);
        let decoded = Header::decode(head.try_into().expect("invariant: split there"))
            .and_then(|header| header.decode_body(Bytes::copy_from_slice(body)));
        match decoded {
            Ok(Frame::Messages(messages)) => {
                for message in &messages {
                    self.watch.received(self.now, message);
                    self.trace.note(
                        self.now,
                        number as u64,
                        "receive",
                        &[message.from.0, message.term.0],
                        || describe(message),
                    );
                }
                self.poll(number, vec![Event::Messages(messages)]);
            }
            Ok(other) => self
                .watch
                .violation(format!("messages came out of their frame as {other:?}")),
            Err(error) => self
                .watch
                .violation(format!("a frame does not survive its codec: {error}")),
        }
    }

    /// With `stray`, nobody has asked for it, and nobody hears of its fate.
    pub(super) fn send_snapshot(&mut self, number: usize, to: MemberId, term: Term, stray: bool) {
        let machine = &self.machines[number];
        let Some(process) = &machine.process else {
            return;
        };
        let mut export = process
            .mvcc
            .export()
            .expect("invariant: the engine in memory does not fail");
        let meta = export.meta().clone();
        let mut chunks = Vec::new();
        loop {
            match export.next_chunk() {
                Ok(Some(chunk)) => chunks.push(chunk),
                Ok(None) => break,
                Err(error) => {
                    return self
                        .watch
                        .violation(format!("{} cannot export a snapshot: {error}", machine.member));
                }
            }
        }
        let (from_boot, target) = (machine.boot, self.machine_of(to));
        let parcel = Parcel { chunks, meta };
        self.trace.note(
            self.now,
            number as u64,
            "snapshot",
            &[to.0, parcel.meta.position.index.0],
            || format!("{:?} to {to}", parcel.meta.position),
        );
        // A stray one may be the end of a stream, and overtake what its leader says meanwhile.
        let delay = if stray { 1 } else { 10 } * self.net.draw_delay();
        let lost = target.is_none_or(|target| self.net.send(number, target, true).is_empty());
        let todo = |parcel, again| Todo::Snapshot {
            from: number,
            from_boot,
            to,
            term,
            parcel,
            lost,
            again,
        };
        // A sender that did not hear of its success sends again, and the receiver may be somewhere else by then.
        if let Some(after) = self.net.repeats_late() {
            self.later(delay + after, todo(parcel.clone(), true));
        }
        self.later(delay, todo(parcel, stray));
    }

    /// Whether the receiver took it.
    pub(super) fn snapshot_arrives(
        &mut self,
        from: usize,
        to: MemberId,
        term: Term,
        parcel: &Parcel,
        lost: bool,
    ) -> bool {
        let target = self
            .machine_of(to)
            .filter(|&target| !lost && self.net.reaches(from, target));
        target.is_some_and(|target| self.take_parcel(target, from, term, parcel))
    }

    fn take_parcel(&mut self, number: usize, from: usize, term: Term, parcel: &Parcel) -> bool {
        let sender = self.machines[from].member;
        let machine = &mut self.machines[number];
        let Some(process) = &mut machine.process else {
            return false;
        };
        if process.import.is_some() {
            // One at a time: the shell refuses a second one while the first waits.
            return false;
        }
        let mut import = process.mvcc.import();
        for chunk in &parcel.chunks {
            if let Err(error) = import.chunk(chunk) {
                self.watch.violation(format!(
                    "{} refuses a chunk of a good snapshot: {error}",
                    machine.member
                ));
                return false;
            }
        }
        process.import = Some(import);
        let meta = parcel.meta.clone();
        self.poll(
            number,
            vec![Event::SnapshotReceived {
                group: GROUP,
                from: sender,
                term,
                meta,
            }],
        );
        true
    }
}
