//! What clients and operators ask of a host: each request is let in, or answered at once.

use super::group::Group;
use super::{
    APPLY_BACKLOG_BYTES_MAX, GROUP_BYTES_RESERVED, GROUP_REQUESTS_RESERVED, HELD_BYTES_MAX, Host, REQUEST_BYTES_MAX,
    REQUESTS_MAX,
};
use crate::effect::{Done, Refusal};
use crate::envelope::Envelope;
use crate::pending::Stage;
use althing_raft::entry::{ConfigChange, ConfigStep, ReadsChange};
use althing_raft::ids::{GroupId, Index, MemberId, Now};
use althing_raft::io::{Input, RequestId, Role};
use althing_raft::roster::ReadSpec;
use bytes::Bytes;

impl Host {
    /// Lets a request in, or answers it at once.
    pub(super) fn admit(&mut self, request: RequestId, id: GroupId, stage: Stage, deadline: Now) -> Option<&mut Group> {
        self.admit_sized(request, id, stage, deadline, 0)
    }

    /// The same with a command of so many bytes. A group that has little under way gets in whatever the others have.
    fn admit_sized(
        &mut self,
        request: RequestId,
        id: GroupId,
        stage: Stage,
        deadline: Now,
        bytes: usize,
    ) -> Option<&mut Group> {
        let me = self.config.me;
        let (count, in_group) = self.requests.size_of(id);
        let many = self.requests.len() >= REQUESTS_MAX && count >= GROUP_REQUESTS_RESERVED;
        let large =
            self.requests.bytes() + bytes > REQUEST_BYTES_MAX && in_group + bytes > GROUP_BYTES_RESERVED && bytes > 0;
        let refusal = match self.groups.get(&id) {
            None => Some(Refusal::NoGroup),
            Some(group) if group.soft.config.learners.contains(&me) => Some(Refusal::Learner),
            Some(group) if !group.soft.config.contains(me) => Some(Refusal::NotMember),
            Some(_) if many || large => Some(Refusal::TooManyRequests),
            Some(_) => None,
        };
        if let Some(refusal) = refusal {
            self.turn.complete(request, Err(refusal));
            return None;
        }
        self.requests.insert(request, id, stage, deadline, bytes);
        self.turn.touched.insert(id);
        self.groups.get_mut(&id)
    }

    pub(super) fn propose(&mut self, request: RequestId, id: GroupId, command: Bytes, deadline: Now) {
        let full = self.groups.get(&id).is_some_and(|group| {
            group.held_bytes + group.stamps.bytes() + command.len() > HELD_BYTES_MAX
                || group.backlog_bytes > APPLY_BACKLOG_BYTES_MAX
        });
        if full {
            return self.turn.complete(request, Err(Refusal::TooManyRequests));
        }
        let (proposer, nonce) = (self.config.me, self.config.nonce);
        if let Some(group) = self.admit_sized(request, id, Stage::Held, deadline, command.len()) {
            group.hold(
                request,
                Envelope {
                    proposer,
                    nonce,
                    sequence: request.0,
                    stamp: None,
                    command,
                }
                .encode(),
            );
        }
    }

    /// The request's name inside a configuration entry; the nonce keeps another boot's or member's apart.
    fn config_request(&self, request: RequestId) -> u64 {
        self.config.nonce.0.wrapping_add(request.0)
    }

    #[expect(clippy::too_many_arguments, reason = "the fields of one event")]
    pub(super) fn configure(
        &mut self,
        now: Now,
        request: RequestId,
        id: GroupId,
        step: ConfigStep,
        context: Bytes,
        expected: Option<Index>,
        deadline: Now,
    ) {
        let Some(group) = self.groups.get(&id) else {
            return self.turn.complete(request, Err(Refusal::NoGroup));
        };
        let current = group.soft.config.index;
        if group.soft.role != Role::Leader {
            let leader = group.soft.leader;
            return self.turn.complete(request, Err(Refusal::NotLeader { leader }));
        }
        if expected.is_some_and(|expected| expected != current) {
            return self.turn.complete(request, Err(Refusal::Conflict { current }));
        }
        if matches!(step, ConfigStep::AddLearner(_)) && group.holds_reshaping() {
            // Until the log is cut behind it.
            return self.turn.complete(request, Err(Refusal::ChangeInFlight));
        }
        let change = ConfigChange {
            request: self.config_request(request),
            step,
            context,
        };
        let me = self.config.me;
        if self.admit(request, id, Stage::Sent(me), deadline).is_some() {
            self.step(now, id, Input::ProposeConfig(request, change));
        }
    }

    pub(super) fn set_reads(&mut self, now: Now, request: RequestId, id: GroupId, spec: ReadSpec, deadline: Now) {
        let Some(group) = self.groups.get(&id) else {
            return self.turn.complete(request, Err(Refusal::NoGroup));
        };
        if group.soft.role != Role::Leader {
            let leader = group.soft.leader;
            return self.turn.complete(request, Err(Refusal::NotLeader { leader }));
        }
        if let Err(error) = group.raft.validate_reads(&spec) {
            return self.turn.complete(request, Err(Refusal::SpecInvalid(error)));
        }
        let change = ReadsChange {
            request: self.config_request(request),
            spec,
        };
        let me = self.config.me;
        if self.admit(request, id, Stage::Sent(me), deadline).is_some() {
            self.step(now, id, Input::ProposeReads(request, change));
        }
    }

    pub(super) fn transfer(&mut self, now: Now, request: RequestId, id: GroupId, to: Option<MemberId>, deadline: Now) {
        let me = self.config.me;
        let Some(group) = self.groups.get(&id) else {
            return self.turn.complete(request, Err(Refusal::NoGroup));
        };
        let voters = &group.soft.config.voters;
        let possible = match to {
            Some(to) => voters.contains(&to),
            None => voters.iter().any(|voter| *voter != me),
        };
        let answer = if group.soft.role != Role::Leader {
            Some(Err(Refusal::NotLeader {
                leader: group.soft.leader,
            }))
        } else if !possible {
            Some(Err(Refusal::BadTransferee))
        } else if to == Some(me) {
            Some(Ok(Done::Transferred { leader: me }))
        } else {
            None
        };
        if let Some(answer) = answer {
            return self.turn.complete(request, answer);
        }
        if let Some(group) = self.admit(request, id, Stage::Transfer, deadline) {
            group.transfers.push(request);
            self.step(now, id, Input::TransferLeader(to));
        }
    }
}
