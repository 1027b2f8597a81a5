//! How rows look: JSON objects with their format, ids as people know them, keys as printable text.

use crate::meta::MetaError;
use althing_raft::ids::{GroupId, Index, LogPosition, MemberId, Term};
use althing_raft::roster::{ReadMode, ReadSpec, ResponderRange, Responders, Revisions, Span as ReadSpan};
use althing_store::partition::{Partitioning, RevisionSource, Span};
use bytes::Bytes;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::time::Duration;

/// The format of rows that this version writes. It reads all up to this one.
pub const FORMAT: u32 = 1;

#[derive(Serialize)]
struct Written<'a, T> {
    format: u32,
    #[serde(flatten)]
    row: &'a T,
}

#[derive(Deserialize)]
struct Probe {
    format: u32,
}

/// A row's value.
pub(crate) fn encode<T: Serialize>(row: &T) -> Bytes {
    let written = Written { format: FORMAT, row };
    Bytes::from(serde_json::to_vec(&written).expect("invariant: rows have text keys and no failing fields"))
}

/// What a row says.
pub(crate) fn decode<T: DeserializeOwned>(key: &[u8], value: &[u8]) -> Result<T, MetaError> {
    let unreadable = |error: serde_json::Error| MetaError::Row {
        key: printable(key),
        what: error.to_string(),
    };
    let Probe { format } = serde_json::from_slice(value).map_err(unreadable)?;
    if format == 0 || format > FORMAT {
        return Err(MetaError::Format {
            key: printable(key),
            found: format,
            known: FORMAT,
        });
    }
    serde_json::from_slice(value).map_err(unreadable)
}

/// Any bytes as text: printable ASCII as it is, a backslash doubled, everything else as `\xNN`.
#[must_use]
pub fn printable(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len());
    for byte in bytes {
        match byte {
            b'\\' => text.push_str("\\\\"),
            b' '..=b'~' => text.push(char::from(*byte)),
            _ => text.push_str(&format!("\\x{byte:02x}")),
        }
    }
    text
}

/// The bytes that [`printable`] wrote; `None` if it did not.
#[must_use]
pub fn unprintable(text: &str) -> Option<Bytes> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((first, behind)) = rest.split_first() {
        rest = behind;
        match (first, behind) {
            (b'\\', [b'\\', behind @ ..]) => {
                bytes.push(b'\\');
                rest = behind;
            }
            (b'\\', [b'x', high, low, behind @ ..]) => {
                let digit = |digit: u8| char::from(digit).to_digit(16);
                let byte = digit(*high)? * 16 + digit(*low)?;
                bytes.push(u8::try_from(byte).ok()?);
                rest = behind;
            }
            (b' '..=b'[' | b']'..=b'~', _) => bytes.push(*first),
            _ => return None,
        }
    }
    Some(bytes.into())
}

fn parse_key<E: serde::de::Error>(text: &str) -> Result<Bytes, E> {
    unprintable(text).ok_or_else(|| E::custom(format!("{text:?} is no printed key")))
}

/// One key.
pub(crate) mod key {
    use super::*;

    pub(crate) fn serialize<S: Serializer>(key: &Bytes, out: S) -> Result<S::Ok, S::Error> {
        out.serialize_str(&printable(key))
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Bytes, D::Error> {
        parse_key(&String::deserialize(from)?)
    }
}

/// Several keys.
pub(crate) mod keys {
    use super::*;

    pub(crate) fn serialize<S: Serializer>(keys: &[Bytes], out: S) -> Result<S::Ok, S::Error> {
        out.collect_seq(keys.iter().map(|key| printable(key)))
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<Bytes>, D::Error> {
        let texts = Vec::<String>::deserialize(from)?;
        texts.iter().map(|text| parse_key(text)).collect()
    }
}

/// A span of partition keys.
pub(crate) mod span {
    use super::*;

    #[derive(Serialize, Deserialize)]
    struct Shape {
        #[serde(with = "super::key")]
        start: Bytes,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        end: Option<String>,
    }

    pub(crate) fn serialize<S: Serializer>(span: &Span, out: S) -> Result<S::Ok, S::Error> {
        let shape = Shape {
            start: span.start.clone(),
            end: span.end.as_ref().map(|end| printable(end)),
        };
        shape.serialize(out)
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Span, D::Error> {
        let shape = Shape::deserialize(from)?;
        let end = shape.end.map(|end| parse_key(&end)).transpose()?;
        Ok(Span {
            start: shape.start,
            end,
        })
    }
}

/// A group by its number.
pub(crate) mod group {
    use super::*;

    pub(crate) fn serialize<S: Serializer>(group: &GroupId, out: S) -> Result<S::Ok, S::Error> {
        out.serialize_u64(group.0)
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<GroupId, D::Error> {
        u64::deserialize(from).map(GroupId)
    }
}

/// Perhaps a group.
pub(crate) mod optional_group {
    use super::*;

    pub(crate) fn serialize<S: Serializer>(group: &Option<GroupId>, out: S) -> Result<S::Ok, S::Error> {
        group.map(|group| group.0).serialize(out)
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Option<GroupId>, D::Error> {
        Ok(Option::deserialize(from)?.map(GroupId))
    }
}

fn parse_member<E: serde::de::Error>(text: &str) -> Result<MemberId, E> {
    let parsed = text.parse();
    parsed.map_err(|_| E::custom(format!("{text:?} is no member id of sixteen hex digits")))
}

/// A member, as sixteen hex digits.
pub(crate) mod member {
    use super::*;

    pub(crate) fn serialize<S: Serializer>(member: &MemberId, out: S) -> Result<S::Ok, S::Error> {
        out.collect_str(member)
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<MemberId, D::Error> {
        parse_member(&String::deserialize(from)?)
    }
}

/// Several members.
pub(crate) mod members {
    use super::*;

    pub(crate) fn serialize<'a, S: Serializer>(
        members: impl IntoIterator<Item = &'a MemberId>,
        out: S,
    ) -> Result<S::Ok, S::Error> {
        out.collect_seq(members.into_iter().map(|member| member.to_string()))
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>, C: FromIterator<MemberId>>(from: D) -> Result<C, D::Error> {
        let texts = Vec::<String>::deserialize(from)?;
        texts.iter().map(|text| parse_member(text)).collect()
    }
}

/// A place in a log.
pub(crate) mod position {
    use super::*;

    #[derive(Serialize, Deserialize)]
    struct Shape {
        term: u64,
        index: u64,
    }

    pub(crate) fn serialize<S: Serializer>(position: &LogPosition, out: S) -> Result<S::Ok, S::Error> {
        let shape = Shape {
            term: position.term.0,
            index: position.index.0,
        };
        shape.serialize(out)
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<LogPosition, D::Error> {
        let shape = Shape::deserialize(from)?;
        Ok(LogPosition {
            term: Term(shape.term),
            index: Index(shape.index),
        })
    }
}

/// How keys become partition keys.
pub(crate) mod partitioning {
    use super::*;

    #[derive(Serialize, Deserialize)]
    enum Shape {
        Range,
        #[serde(rename_all = "camelCase")]
        Hash {
            slots: u32,
            #[serde(default)]
            prefix_segments: Option<u8>,
        },
    }

    pub(crate) fn serialize<S: Serializer>(partitioning: &Partitioning, out: S) -> Result<S::Ok, S::Error> {
        let shape = match *partitioning {
            Partitioning::Range => Shape::Range,
            Partitioning::Hash { slots, prefix_segments } => Shape::Hash { slots, prefix_segments },
        };
        shape.serialize(out)
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Partitioning, D::Error> {
        Ok(match Shape::deserialize(from)? {
            Shape::Range => Partitioning::Range,
            Shape::Hash { slots, prefix_segments } => Partitioning::Hash { slots, prefix_segments },
        })
    }
}

/// Where revisions come from.
pub(crate) mod source {
    use super::*;

    #[derive(Serialize, Deserialize)]
    enum Shape {
        Dense,
        Sequenced,
    }

    pub(crate) fn serialize<S: Serializer>(source: &RevisionSource, out: S) -> Result<S::Ok, S::Error> {
        let shape = match source {
            RevisionSource::Dense => Shape::Dense,
            RevisionSource::Sequenced => Shape::Sequenced,
        };
        shape.serialize(out)
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<RevisionSource, D::Error> {
        Ok(match Shape::deserialize(from)? {
            Shape::Dense => RevisionSource::Dense,
            Shape::Sequenced => RevisionSource::Sequenced,
        })
    }
}

/// How linearizable reads are answered.
pub(crate) mod reads {
    use super::*;
    use std::collections::BTreeSet;

    #[derive(Serialize, Deserialize)]
    enum Mode {
        ReadIndex,
        LeaderLease,
        RosterLease,
    }

    #[derive(Serialize, Deserialize)]
    enum Tells {
        Current,
        OfKeys,
    }

    #[derive(Serialize, Deserialize)]
    enum Who {
        None,
        All,
        Ranges(Vec<Part>),
    }

    #[derive(Serialize, Deserialize)]
    struct Part {
        #[serde(default, skip_serializing_if = "Option::is_none")]
        key: Option<String>,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        start: Option<String>,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        end: Option<String>,
        #[serde(with = "super::members")]
        members: BTreeSet<MemberId>,
    }

    #[derive(Serialize, Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Shape {
        mode: Mode,
        responders: Who,
        revisions: Tells,
        lease_millis: u64,
    }

    fn part(range: &ResponderRange) -> Part {
        let (key, start, end) = match &range.span {
            ReadSpan::Key(key) => (Some(printable(key)), None, None),
            ReadSpan::Range { start, end } => (None, Some(printable(start)), end.as_ref().map(|end| printable(end))),
        };
        Part {
            key,
            start,
            end,
            members: range.members.clone(),
        }
    }

    fn range<E: serde::de::Error>(part: Part) -> Result<ResponderRange, E> {
        let span = match (part.key, part.start) {
            (Some(key), _) => ReadSpan::Key(parse_key(&key)?),
            (None, start) => ReadSpan::Range {
                start: parse_key(&start.unwrap_or_default())?,
                end: part.end.map(|end| parse_key(&end)).transpose()?,
            },
        };
        Ok(ResponderRange {
            span,
            members: part.members,
        })
    }

    pub(crate) fn serialize<S: Serializer>(spec: &Option<ReadSpec>, out: S) -> Result<S::Ok, S::Error> {
        let shape = spec.as_ref().map(|spec| Shape {
            mode: match spec.mode {
                ReadMode::ReadIndex => Mode::ReadIndex,
                ReadMode::LeaderLease => Mode::LeaderLease,
                ReadMode::RosterLease => Mode::RosterLease,
            },
            responders: match &spec.responders {
                Responders::None => Who::None,
                Responders::All => Who::All,
                Responders::Ranges(ranges) => Who::Ranges(ranges.iter().map(part).collect()),
            },
            revisions: match spec.revisions {
                Revisions::Current => Tells::Current,
                Revisions::OfKeys => Tells::OfKeys,
            },
            lease_millis: u64::try_from(spec.lease.as_millis()).unwrap_or(u64::MAX),
        });
        shape.serialize(out)
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Option<ReadSpec>, D::Error> {
        let Some(shape) = Option::<Shape>::deserialize(from)? else {
            return Ok(None);
        };
        let responders = match shape.responders {
            Who::None => Responders::None,
            Who::All => Responders::All,
            Who::Ranges(parts) => {
                let ranges: Result<_, D::Error> = parts.into_iter().map(range).collect();
                Responders::Ranges(ranges?)
            }
        };
        Ok(Some(ReadSpec {
            mode: match shape.mode {
                Mode::ReadIndex => ReadMode::ReadIndex,
                Mode::LeaderLease => ReadMode::LeaderLease,
                Mode::RosterLease => ReadMode::RosterLease,
            },
            responders,
            revisions: match shape.revisions {
                Tells::Current => Revisions::Current,
                Tells::OfKeys => Revisions::OfKeys,
            },
            lease: Duration::from_millis(shape.lease_millis),
        }))
    }
}

/// A number that is a row's whole name, as in `shards/7`.
pub(crate) fn number<T: std::str::FromStr>(key: &[u8], text: &str) -> Result<T, MetaError> {
    text.parse().map_err(|_| MetaError::Row {
        key: printable(key),
        what: format!("{text:?} is no number"),
    })
}

/// A member that is a row's whole name.
pub(crate) fn named_member(key: &[u8], text: &str) -> Result<MemberId, MetaError> {
    parse_member::<serde_json::Error>(text).map_err(|error| MetaError::Row {
        key: printable(key),
        what: error.to_string(),
    })
}
