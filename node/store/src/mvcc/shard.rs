//! What a group is as a shard: what it owns, and what it has taken part in.

use crate::codec::shard::{decode_source, decode_territory, encode_source, encode_territory};
use crate::codec::{CodecError, Reader};
use crate::ops::{Command, KeyRange, Op, RevisionSource, Territory, Txn};
use althing_raft::ids::GroupId;
use bytes::BufMut;

/// The part of the applied record that says so. All default in a group that is a keyspace's only shard.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(crate) struct Shard {
    pub(crate) territory: Territory,
    pub(crate) source: RevisionSource,
    /// The operation that sealed it.
    pub(crate) sealed: Option<u64>,
    /// The group that was last cut off it, so that the cut can be asked for again.
    pub(crate) last_child: Option<GroupId>,
    /// The operation by which a neighbour last joined, for the same reason.
    pub(crate) last_absorb: Option<u64>,
    /// Whether its state has joined another group. It owns nothing then, and stays sealed.
    pub(crate) absorbed: bool,
}

fn put_option(value: Option<u64>, out: &mut impl BufMut) {
    match value {
        None => out.put_u8(0),
        Some(value) => {
            out.put_u8(1);
            out.put_u64_le(value);
        }
    }
}

impl Shard {
    /// Appends it: `territory | source | sealed option | last child option | last absorb option | absorbed bool`.
    pub(crate) fn encode(&self, out: &mut impl BufMut) {
        encode_territory(&self.territory, out);
        encode_source(self.source, out);
        put_option(self.sealed, out);
        put_option(self.last_child.map(|group| group.0), out);
        put_option(self.last_absorb, out);
        out.put_u8(u8::from(self.absorbed));
    }

    pub(crate) fn decode(reader: &mut Reader) -> Result<Self, CodecError> {
        let territory = decode_territory(reader)?;
        let source = decode_source(reader)?;
        let mut option = |what| reader.option(what, |reader| reader.u64(what));
        Ok(Self {
            territory,
            source,
            sealed: option("the seal's operation")?,
            last_child: option("the last child")?.map(GroupId),
            last_absorb: option("the last absorption's operation")?,
            absorbed: reader.bool("whether it was absorbed")?,
        })
    }

    /// Whether everything that a command of a client touches, in whichever branch, is owned.
    pub(crate) fn owns(&self, command: &Command) -> bool {
        if self.territory.span.is_whole() && !has_parts(command) {
            return true;
        }
        let mut all = true;
        each_key(command, &mut |keys, _| all &= self.territory.owns_all(keys));
        all
    }

    /// The same for a transaction.
    pub(crate) fn owns_txn(&self, txn: &Txn) -> bool {
        let mut all = true;
        each_key_of_txn(txn, &mut |keys, _| all &= self.territory.owns_all(keys));
        all
    }
}

/// Whether a request only looks at keys or may change them.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Access {
    Read,
    Write,
}

fn has_parts(command: &Command) -> bool {
    match command {
        // One key has no parts.
        Command::Put(_) | Command::Compact(_) => false,
        Command::Delete(_) | Command::Txn(_) | Command::Shard(_) => true,
    }
}

/// Visits all keys that a command of a client touches, in whichever branch.
pub(crate) fn each_key(command: &Command, visit: &mut impl FnMut(&KeyRange, Access)) {
    match command {
        Command::Put(put) => visit(&KeyRange::Single(put.key.clone()), Access::Write),
        Command::Delete(delete) => visit(&delete.keys, Access::Write),
        Command::Txn(txn) => each_key_of_txn(txn, visit),
        Command::Compact(_) | Command::Shard(_) => {}
    }
}

/// The same for a transaction.
pub(crate) fn each_key_of_txn(txn: &Txn, visit: &mut impl FnMut(&KeyRange, Access)) {
    for compare in &txn.compares {
        visit(&compare.keys, Access::Read);
    }
    for op in txn.success.iter().chain(&txn.failure) {
        match op {
            Op::Range(range) => visit(&range.keys, Access::Read),
            Op::Put(put) => visit(&KeyRange::Single(put.key.clone()), Access::Write),
            Op::Delete(delete) => visit(&delete.keys, Access::Write),
            Op::Txn(inner) => each_key_of_txn(inner, visit),
        }
    }
}
