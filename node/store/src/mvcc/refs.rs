//! Which slots are in use, as the engine has it.
//!
//! ```text
//! slot record := own u32                                        a group with rows in its own slot only
//!              | own u32 | 1 | sources u32 | source*            ... and in these
//!              | next u32 | 2                                   a group that has left; its next slot would be this one
//! source      := group u64 | slot u32 | spans u32 | span*
//! group u64 | 'L' | slot u32 | other u64 -> nothing             the other group refers to the slot
//! ```
//!
//! A slot that nobody writes into is needed as long as a row says so. Both are written in the batch that changes who refers to what.

use crate::codec::shard::{decode_span, encode_span};
use crate::codec::{CodecError, Reader, put_len};
use crate::error::StoreError;
use crate::mvcc::layout::{Slot, data_prefix, slot_key};
use crate::mvcc::sources::Source;
use crate::mvcc::walk;
use crate::state::{Batch, KeySpan, Order, PageLimit, StateStore};
use althing_raft::ids::GroupId;
use bytes::{BufMut, Bytes};
use std::collections::BTreeSet;

const WITH_SOURCES: u8 = 1;
const GONE: u8 = 2;

/// One row of a scan.
const ONE: PageLimit = PageLimit { rows: 1, bytes: 1 };

/// What a group's slot record says.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum SlotRecord {
    /// Where the group writes, and where else it has rows.
    Here { own: u32, inherited: Vec<Source> },
    /// It has left this node. Others may still refer to its slots below `next`.
    Gone { next: u32 },
}

impl SlotRecord {
    /// Nobody has written one: slot 0.
    pub(crate) const FIRST: Self = Self::Here {
        own: 0,
        inherited: Vec::new(),
    };

    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut out = Vec::new();
        match self {
            Self::Here { own, inherited } => {
                out.put_u32_le(*own);
                // As earlier versions wrote it, unless they could not read what it means.
                if !inherited.is_empty() {
                    out.put_u8(WITH_SOURCES);
                    put_len(inherited.len(), &mut out);
                }
                for Source { slot, spans } in inherited {
                    out.put_u64_le(slot.group.0);
                    out.put_u32_le(slot.number);
                    put_len(spans.len(), &mut out);
                    spans.iter().for_each(|span| encode_span(span, &mut out));
                }
            }
            Self::Gone { next } => {
                out.put_u32_le(*next);
                out.put_u8(GONE);
            }
        }
        out
    }

    fn decode(bytes: Bytes) -> Result<Self, CodecError> {
        let mut reader = Reader(bytes);
        let number = reader.u32("slot")?;
        if reader.0.is_empty() {
            return Ok(Self::Here {
                own: number,
                inherited: Vec::new(),
            });
        }
        let record = match reader.u8("slot record")? {
            WITH_SOURCES => {
                let mut inherited = Vec::new();
                for _ in 0..reader.u32("sources")? {
                    let slot = Slot {
                        group: GroupId(reader.u64("source")?),
                        number: reader.u32("source")?,
                    };
                    let mut spans = Vec::new();
                    for _ in 0..reader.u32("spans")? {
                        spans.push(decode_span(&mut reader)?);
                    }
                    inherited.push(Source { slot, spans });
                }
                Self::Here { own: number, inherited }
            }
            GONE => Self::Gone { next: number },
            tag => {
                return Err(CodecError::Tag {
                    what: "slot record",
                    tag,
                });
            }
        };
        reader.finish("slot record")?;
        Ok(record)
    }

    /// What the engine has of a group; `None` if nothing.
    pub(crate) fn load<S: StateStore>(store: &S, group: GroupId) -> Result<Option<Self>, StoreError> {
        let record = store.get(&slot_key(group))?.map(Self::decode).transpose();
        record.map_err(|source| StoreError::Unreadable {
            group,
            what: "the slot record",
            source,
        })
    }
}

fn refs_prefix(group: GroupId) -> Vec<u8> {
    let mut key = group.0.to_be_bytes().to_vec();
    key.push(b'L');
    key
}

impl Slot {
    /// The row that says that a group refers to it.
    pub(crate) fn ref_key(self, by: GroupId) -> Vec<u8> {
        let mut key = refs_prefix(self.group);
        key.put_u32(self.number);
        key.put_u64(by.0);
        key
    }

    /// Whether any group refers to it.
    pub(crate) fn is_referred_to<S: StateStore>(self, store: &S) -> Result<bool, StoreError> {
        let mut prefix = refs_prefix(self.group);
        prefix.put_u32(self.number);
        Ok(!store.scan(&KeySpan::prefix(&prefix), Order::Forward, ONE)?.is_empty())
    }
}

/// Slots of a group that groups refer to.
pub(crate) fn referred_to<S: StateStore>(store: &S, group: GroupId) -> Result<BTreeSet<u32>, StoreError> {
    let prefix = refs_prefix(group);
    let mut slots = BTreeSet::new();
    walk(store, KeySpan::prefix(&prefix), |key, _| {
        let number = key.get(prefix.len()..prefix.len() + 4);
        let number = number.and_then(|number| number.try_into().ok()).map(u32::from_be_bytes);
        slots.insert(number.ok_or_else(|| StoreError::Corrupt {
            group,
            what: "the key of a reference to a slot is too short".to_owned(),
        })?);
        Ok(())
    })?;
    Ok(slots)
}

/// The largest slot of a group in which there is anything.
pub(crate) fn last_slot<S: StateStore>(store: &S, group: GroupId) -> Result<Option<u32>, StoreError> {
    let prefix = data_prefix(group);
    let last = store.scan(&KeySpan::prefix(&prefix), Order::Backward, ONE)?;
    Ok(last.first().and_then(|(key, _)| number_in(key, prefix.len())))
}

fn number_in(key: &[u8], at: usize) -> Option<u32> {
    let number = key.get(at..at + 4)?;
    Some(u32::from_be_bytes(number.try_into().ok()?))
}

/// The slot in which a group can begin that is not here; `None` if it is here.
pub(crate) fn birthplace<S: StateStore>(store: &S, group: GroupId) -> Result<Option<Slot>, StoreError> {
    let record = SlotRecord::load(store, group)?;
    let own = match &record {
        None => Some(0),
        Some(SlotRecord::Here { own, .. }) => Some(*own),
        Some(SlotRecord::Gone { .. }) => None,
    };
    if let Some(number) = own
        && store.get(&Slot { group, number }.applied_key())?.is_some()
    {
        return Ok(None);
    }
    // Behind whatever lies there: what an import left, or what others refer to.
    let after = |number: Option<u32>| number.map_or(0, |number| number + 1);
    let mut number = after(last_slot(store, group)?).max(after(referred_to(store, group)?.last().copied()));
    match record {
        None => {}
        Some(SlotRecord::Here { own, .. }) => number = number.max(own),
        Some(SlotRecord::Gone { next }) => number = number.max(next),
    }
    Ok(Some(Slot { group, number }))
}

/// Adds to a batch what makes `after` the places where a group has rows, instead of `before`. Of each list the own slot is named too.
pub(crate) fn put_sources(
    batch: &mut Batch,
    group: GroupId,
    before: (&[Source], Slot),
    after: (&[Source], Slot),
) -> SlotRecord {
    let inherited = |(sources, own): (&[Source], Slot)| -> Vec<Source> {
        let others = sources
            .iter()
            .filter(|source| source.slot != own && !source.spans.is_empty());
        others.cloned().collect()
    };
    let (was, is) = (inherited(before), inherited(after));
    let slots = |sources: &[Source]| -> BTreeSet<Slot> { sources.iter().map(|source| source.slot).collect() };
    let (slots_before, slots_after) = (slots(&was), slots(&is));
    for slot in slots_after.difference(&slots_before) {
        batch.put(slot.ref_key(group), Bytes::new());
    }
    for slot in slots_before.difference(&slots_after) {
        batch.delete(slot.ref_key(group));
    }
    let record = SlotRecord::Here {
        own: after.1.number,
        inherited: is,
    };
    batch.put(slot_key(group), record.encode());
    record
}

/// Groups that the engine has something of. `true`: they are here; `false`: they have left or never came to be, and something remains.
fn all_groups<S: StateStore>(store: &S) -> Result<Vec<(GroupId, bool)>, StoreError> {
    let mut groups = Vec::new();
    let mut start = Some(0_u64);
    while let Some(from) = start {
        let span = KeySpan {
            start: Bytes::copy_from_slice(&from.to_be_bytes()),
            end: None,
        };
        let page = store.scan(&span, Order::Forward, ONE)?;
        let Some((key, _)) = page.first() else { break };
        let Some(group) = key
            .get(..8)
            .and_then(|group| group.try_into().ok())
            .map(u64::from_be_bytes)
        else {
            break;
        };
        let here = match SlotRecord::load(store, GroupId(group))?.unwrap_or(SlotRecord::FIRST) {
            SlotRecord::Here { own, .. } => {
                let slot = Slot {
                    group: GroupId(group),
                    number: own,
                };
                store.get(&slot.applied_key())?.is_some()
            }
            SlotRecord::Gone { .. } => false,
        };
        groups.push((GroupId(group), here));
        start = group.checked_add(1);
    }
    Ok(groups)
}

/// The groups that an engine has states of, for whoever opens them at a boot: those that were cut off others too.
///
/// # Errors
/// If the engine fails or a record is damaged.
pub fn groups<S: StateStore>(store: &S) -> Result<Vec<GroupId>, StoreError> {
    let all = all_groups(store)?;
    Ok(all
        .into_iter()
        .filter(|(_, here)| *here)
        .map(|(group, _)| group)
        .collect())
}

/// Clears what groups left behind that are no longer here and that nobody refers to any more. For a boot, before groups are opened.
///
/// # Errors
/// If the engine fails or a record is damaged.
pub fn tidy<S: StateStore>(store: &S) -> Result<(), StoreError> {
    for (group, here) in all_groups(store)? {
        if !here {
            clear_unused(store, group, None)?;
            if last_slot(store, group)?.is_none() && referred_to(store, group)?.is_empty() {
                let mut batch = Batch::default();
                batch.delete(slot_key(group));
                store.apply(batch)?;
            }
        }
    }
    Ok(())
}

/// Clears all slots of a group but its own and those that groups refer to.
pub(crate) fn clear_unused<S: StateStore>(store: &S, group: GroupId, own: Option<u32>) -> Result<(), StoreError> {
    let mut kept = referred_to(store, group)?;
    kept.extend(own);
    let KeySpan { mut start, end } = KeySpan::prefix(&data_prefix(group));
    for number in kept {
        let slot = KeySpan::prefix(&Slot { group, number }.prefix());
        let before = KeySpan {
            start,
            end: Some(slot.start),
        };
        store.clear(&before)?;
        let Some(after) = slot.end else { return Ok(()) };
        start = after;
    }
    store.clear(&KeySpan { start, end })
}
