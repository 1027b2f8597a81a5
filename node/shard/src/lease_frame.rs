//! What members say about rosters and leases, as bytes: bodies of `Messages` in [`crate::frame`].

use althing_raft::ids::{Epoch, Index, MemberId, Now, Term};
use althing_raft::message::Body;
use althing_raft::roster::{Ballot, Roster};
use althing_raft::spec_codec::{decode_ranges, decode_revisions, encode_ranges, encode_revisions, nanos};
use althing_wal::codec::CodecError;
use bytes::{Buf, BufMut, Bytes, BytesMut};
use std::time::Duration;

/// Tags of these bodies; those of others are below.
pub(crate) const ROSTER: u8 = 20;
const LEASE_REQUEST: u8 = 21;
const LEASE_GRANT: u8 = 22;
const REVOKE: u8 = 23;
/// The last of them.
pub(crate) const REVOKED: u8 = 24;

fn put_ballot(ballot: Ballot, out: &mut BytesMut) {
    out.put_u64_le(ballot.term.0);
    out.put_u64_le(ballot.epoch.0);
}

pub(crate) fn encode_roster(roster: &Roster, out: &mut BytesMut) {
    out.put_u8(ROSTER);
    put_ballot(roster.ballot, out);
    out.put_u64_le(roster.leader.0);
    out.put_u64_le(roster.config.0);
    out.put_u64_le(nanos(roster.lease));
    out.put_u64_le(roster.safe.0);
    encode_revisions(roster.revisions, out);
    encode_ranges(&roster.ranges, out);
}

pub(crate) fn encode_request(ballot: Ballot, sent: Now, incarnation: u64, out: &mut BytesMut) {
    out.put_u8(LEASE_REQUEST);
    put_ballot(ballot, out);
    out.put_u64_le(sent.0);
    out.put_u64_le(incarnation);
}

pub(crate) fn encode_grant(ballot: Ballot, sent: Now, asker: u64, incarnation: u64, out: &mut BytesMut) {
    out.put_u8(LEASE_GRANT);
    put_ballot(ballot, out);
    out.put_u64_le(sent.0);
    out.put_u64_le(asker);
    out.put_u64_le(incarnation);
}

pub(crate) fn encode_revoke(below: Ballot, incarnation: u64, out: &mut BytesMut) {
    out.put_u8(REVOKE);
    put_ballot(below, out);
    out.put_u64_le(incarnation);
}

pub(crate) fn encode_revoked(below: Ballot, incarnation: u64, out: &mut BytesMut) {
    out.put_u8(REVOKED);
    put_ballot(below, out);
    out.put_u64_le(incarnation);
}

fn get(buf: &mut Bytes) -> Result<u64, CodecError> {
    if buf.len() < 8 {
        return Err(CodecError::Short {
            what: "lease message",
            needed: 8,
            left: buf.len(),
        });
    }
    Ok(buf.get_u64_le())
}

/// Reads the body behind one of the tags above.
pub(crate) fn decode(tag: u8, buf: &mut Bytes) -> Result<Body, CodecError> {
    let ballot = Ballot {
        term: Term(get(buf)?),
        epoch: Epoch(get(buf)?),
    };
    Ok(match tag {
        ROSTER => Body::Roster {
            roster: Roster {
                ballot,
                leader: MemberId(get(buf)?),
                config: Index(get(buf)?),
                lease: Duration::from_nanos(get(buf)?),
                safe: Index(get(buf)?),
                revisions: decode_revisions(buf)?,
                ranges: decode_ranges(buf)?,
            },
        },
        LEASE_REQUEST => Body::LeaseRequest {
            ballot,
            sent: Now(get(buf)?),
            incarnation: get(buf)?,
        },
        LEASE_GRANT => Body::LeaseGrant {
            ballot,
            sent: Now(get(buf)?),
            asker: get(buf)?,
            incarnation: get(buf)?,
        },
        REVOKE => Body::Revoke {
            below: ballot,
            incarnation: get(buf)?,
        },
        REVOKED => Body::Revoked {
            below: ballot,
            incarnation: get(buf)?,
        },
        tag => {
            return Err(CodecError::Tag {
                what: "lease message",
                tag,
            });
        }
    })
}
