//! One node's own groups, asked: as `node/src/local.rs` does it, and where the asks of others are answered.

use super::call::{Ask, Failure, ReadTerms, Reply};
use super::machine::{Process, Said, Store};
use super::task::{Answer, promise};
use super::{Node, Todo};
use crate::mutant::Sabotage;
use althing_raft::ids::{GroupId, MemberId, Now};
use althing_raft::io::RequestId;
use althing_raft::roster::Footprint;
use althing_shard::{Done, Event, Refusal};
use althing_store::codec::encode_command;
use althing_store::ops::{Command, Revision, Txn};
use althing_store::{CommandResult, footprint};
use bytes::Bytes;
use std::rc::Rc;

/// Why the host refused, in a client's words.
pub(crate) fn failed(refusal: Refusal) -> Failure {
    match refusal {
        Refusal::NoLeader | Refusal::NoStamp => Failure::NoLeader,
        Refusal::NotLeader { .. } => Failure::NotLeader,
        Refusal::LeaderChanged => Failure::LeaderChanged,
        Refusal::Timeout => Failure::Timeout,
        Refusal::TooManyRequests | Refusal::ChangeInFlight => Failure::TooManyRequests,
        Refusal::BadTransferee
        | Refusal::SpecInvalid(_)
        | Refusal::ChangeInvalid
        | Refusal::Conflict { .. }
        | Refusal::LearnerBehind => Failure::No(refusal.to_string()),
        Refusal::Learner => Failure::Learner,
        Refusal::NotMember | Refusal::NoGroup => Failure::Stopped,
    }
}

pub(crate) fn encoded(command: &Command) -> Bytes {
    let mut bytes = Vec::new();
    encode_command(command, &mut bytes);
    bytes.into()
}

impl Node {
    /// Something with the process, if this life of it still runs.
    pub(crate) fn with<T>(&self, act: impl FnOnce(&mut Process) -> T) -> Option<T> {
        let mut world = self.ground.world.borrow_mut();
        let machine = &mut world.machines[self.number];
        (machine.boot == self.boot).then_some(())?;
        machine.process.as_mut().map(act)
    }

    pub(crate) fn me(&self) -> MemberId {
        self.ground.world.borrow().machines[self.number].member
    }

    pub(crate) fn local_now(&self) -> Now {
        let world = self.ground.world.borrow();
        world.machines[self.number].clock.local(world.now)
    }

    pub(crate) fn sleep(&self, wait: u64) -> Answer<()> {
        self.ground.sleep(Some(self.number), wait)
    }

    pub(crate) fn store(&self, group: GroupId) -> Result<Rc<Store>, Failure> {
        self.with(|process| process.groups.get(&group).map(Rc::clone))
            .flatten()
            .ok_or(Failure::Stopped)
    }

    /// Tells the host something, in its next turn.
    pub(crate) fn tell(&self, event: Event) {
        let (machine, boot) = (self.number, self.boot);
        let mut world = self.ground.world.borrow_mut();
        world.later(0, Todo::Tell { machine, boot, event });
    }

    async fn ask_host(&self, event: impl FnOnce(RequestId, Now) -> Event) -> Result<Said, Failure> {
        let (said, answer) = promise();
        let event = {
            let mut world = self.ground.world.borrow_mut();
            let (now, patience) = (world.now, world.weather.patience);
            let machine = &mut world.machines[self.number];
            let deadline = Now(machine.clock.local(now).0 + patience);
            let process = machine.process.as_mut().ok_or(Failure::Stopped)?;
            process.next_request += 1;
            let request = RequestId(process.next_request);
            process.open.insert(request, Some(said));
            event(request, deadline)
        };
        self.tell(event);
        answer.await.ok_or(Failure::Stopped)
    }

    async fn ask_for(&self, event: impl FnOnce(RequestId, Now) -> Event) -> Result<Done, Failure> {
        match self.ask_host(event).await? {
            Said::Host(result) => result.map_err(failed),
            Said::Applied(_) => unreachable!("invariant: only commands are answered by the state machine"),
        }
    }

    /// Replicates a command and applies it here.
    pub(crate) async fn execute(&self, group: GroupId, command: Bytes) -> Result<CommandResult, Failure> {
        let said = self.ask_host(|request, deadline| Event::Propose {
            request,
            group,
            command,
            deadline,
        });
        match said.await? {
            Said::Applied(result) => Ok(result),
            Said::Host(Err(refusal)) => Err(failed(refusal)),
            Said::Host(Ok(_)) => unreachable!("invariant: commands are answered by the state machine"),
        }
    }

    /// Waits until the state machine has everything of these keys that was committed when this was called.
    pub(crate) async fn catch_up(&self, group: GroupId, footprint: Footprint) -> Result<(), Failure> {
        let done = self.ask_for(|request, deadline| Event::Read {
            request,
            group,
            footprint,
            deadline,
        });
        done.await.map(|_| ())
    }

    /// Reads in a group; what is settled is known by its leader only.
    pub(crate) async fn read(&self, group: GroupId, terms: ReadTerms, txn: Txn) -> Result<CommandResult, Failure> {
        let store = self.store(group)?;
        if terms.settled && !self.ground.world.borrow().breaks(Sabotage::ReadUnsettled) {
            let resolved = self.ask_for(|request, deadline| Event::Resolve {
                request,
                group,
                deadline,
            });
            resolved.await?;
        } else {
            self.catch_up(group, footprint::read_txn(&txn)).await?;
        }
        // The thread that looks at the state is another one, and may come late.
        let wait = {
            let mut world = self.ground.world.borrow_mut();
            let latest = world.weather.serve_max;
            world.machines[self.number].rng.below(latest)
        };
        if wait > 0 {
            self.sleep(wait).await;
        }
        match store.read_txn(&txn) {
            Ok(Ok((revision, result))) => Ok(CommandResult {
                revision,
                result: Ok(result),
            }),
            Ok(Err(error)) => Ok(CommandResult {
                revision: Revision(0),
                result: Err(error),
            }),
            Err(error) => {
                let text = format!("a read of group {group} fails: {error}");
                self.ground.world.borrow_mut().violation(text);
                Err(Failure::Stopped)
            }
        }
    }

    /// Answers what another node asks, or this one.
    pub(crate) async fn answer(&self, ask: Ask) -> Reply {
        let done = match ask {
            Ask::Execute { group, command } => {
                return self
                    .execute(group, command)
                    .await
                    .map_or_else(Reply::Failure, Reply::Answer);
            }
            Ask::Read { group, terms, txn } => {
                return self
                    .read(group, terms, txn)
                    .await
                    .map_or_else(Reply::Failure, Reply::Answer);
            }
            Ask::Stamp { group, count } => {
                let stamped = self.hand_out(group, count).await;
                return stamped.map_or_else(Reply::Failure, Reply::Stamp);
            }
            Ask::Observe => return Reply::View(self.observe()),
            Ask::IsOver { nonce, number } => {
                if self.is_over_here(nonce, number) {
                    Ok(())
                } else {
                    Err(Failure::No("it is being driven".to_owned()))
                }
            }
            Ask::Open { group } => self.open(group).await,
            Ask::Create {
                group,
                territory,
                source,
            } => self.create(group, territory, source).await,
            Ask::Close { group, guard } => self.close_group(group, guard).await,
            Ask::Configure {
                group,
                step,
                expected,
                context,
            } => {
                let asked = self.ask_for(|request, deadline| Event::Configure {
                    request,
                    group,
                    step,
                    context,
                    expected: Some(expected),
                    deadline,
                });
                asked.await.map(|_| ())
            }
            Ask::Transfer { group, to } => {
                let asked = self.ask_for(|request, deadline| Event::Transfer {
                    request,
                    group,
                    to: Some(to),
                    deadline,
                });
                asked.await.map(|_| ())
            }
            Ask::ConfirmSealed { group, at } => self.confirm(group, at),
            Ask::StartSequencer { group, above } => self.start_sequencer(group, above).await,
        };
        done.map_or_else(Reply::Failure, |()| Reply::Done)
    }
}
