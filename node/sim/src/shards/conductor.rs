//! Whoever conducts: the steps of `node/src/conductor.rs`; and whoever wishes for other maps.

use super::call::{Ask, Failure, Reply};
use super::local::encoded;
use super::task::promise;
use super::{Ground, Node};
use crate::rng::Rng;
use crate::world::conditions::MS;
use althing_raft::ids::{GroupId, MemberId};
use althing_raft::io::Role;
use althing_raft::roster::Footprint;
use althing_shard::conductor::{Action, MemberView, Observed, Step, conduct};
use althing_shard::map::{MemberRecord, MemberState};
use althing_shard::meta::{KeyspaceSpec, MetaChange, MetaState};
use althing_store::ops::{Command, KeyRange, OpResult, Partitioning, Range};
use bytes::Bytes;
use std::collections::BTreeMap;
use std::rc::Rc;

/// Between two rounds while something is under way, and while nothing is.
const BUSY_INTERVAL: u64 = 50 * MS;
const IDLE_INTERVAL: u64 = 500 * MS;
/// Longest time that one member may take to answer a look, and that one step may take.
const LOOK_TIMEOUT: u64 = 1_000 * MS;
const STEP_TIMEOUT: u64 = 5_000 * MS;
/// What goes into member tables: addresses are the real shell's business.
const CONTEXT: &[u8] = b"somewhere:2380";
/// Slots of a keyspace whose keys are hashed.
const SLOTS: u32 = 16;

/// What is known of members between two rounds.
#[derive(Default)]
struct Memory {
    since: Option<althing_raft::ids::Now>,
    members: BTreeMap<MemberId, MemberView>,
}

impl Node {
    /// Conducts whenever this node leads the meta group.
    pub(crate) async fn conduct(&self) {
        let mut memory = Memory::default();
        loop {
            let interval = if self.leads(GroupId::META) {
                match self.round(&mut memory).await {
                    Ok(true) => BUSY_INTERVAL,
                    Ok(false) | Err(_) => IDLE_INTERVAL,
                }
            } else {
                // Whoever conducts next begins to look anew.
                memory = Memory::default();
                IDLE_INTERVAL
            };
            if self.sleep(interval).await.is_none() {
                return;
            }
        }
    }

    fn leads(&self, group: GroupId) -> bool {
        self.with(|process| {
            let soft = process.soft.get(&group);
            soft.is_some_and(|soft| soft.role == Role::Leader)
        }) == Some(true)
    }

    /// The map as of now.
    async fn map(&self) -> Result<MetaState, Failure> {
        self.catch_up(GroupId::META, Footprint::All).await?;
        let store = self.store(GroupId::META)?;
        let broken = |error: String| Failure::No(error);
        let (_, rows) = store
            .range(&Range::of(KeyRange::From(Bytes::new())))
            .map_err(|error| broken(error.to_string()))?
            .map_err(Failure::Op)?;
        MetaState::load(rows.kvs.into_iter().map(|kv| (kv.key, kv.value))).map_err(|error| broken(error.to_string()))
    }

    /// Makes a change of the map, if it is still the one that it was made for.
    async fn change(&self, change: MetaChange, version: u64) -> Result<(), Failure> {
        let command = encoded(&Command::Txn(change.into_txn(version)));
        match self.execute(GroupId::META, command).await?.result {
            Ok(OpResult::Txn { succeeded: true, .. }) => Ok(()),
            Ok(_) => Err(Failure::No("somebody else was first".to_owned())),
            Err(error) => Err(Failure::Op(error)),
        }
    }

    /// One look and what follows from it; says whether something is under way.
    async fn round(&self, memory: &mut Memory) -> Result<bool, Failure> {
        let state = self.map().await?;
        if state.version == 0 {
            let change = state.genesis(&self.founders()?);
            self.change(change.map_err(|error| Failure::No(error.to_string()))?, 0)
                .await?;
            return Ok(true);
        }
        let seen = self.look(memory).await;
        let limits = self.ground.world.borrow().weather.limits;
        let plan = conduct(&state, &seen, self.local_now(), &limits);
        let busy = !plan.steps.is_empty() || !state.operations.is_empty();
        self.ground.world.borrow_mut().note_plan(&plan, &state);
        self.perform(plan.steps, state.version).await;
        Ok(busy)
    }

    /// Where the first shard's replicas are when there is no map yet.
    fn founders(&self) -> Result<BTreeMap<MemberId, MemberRecord>, Failure> {
        let soft = self
            .with(|process| process.soft.get(&GroupId::FIRST_SHARD).cloned())
            .flatten();
        let soft = soft.ok_or(Failure::NoLeader)?;
        let record = |member: &MemberId| (*member, MemberRecord::default());
        Ok(soft.config.voters.iter().map(record).collect())
    }

    /// Asks every member how its groups are, all at the same time. Whoever does not answer is as it was.
    async fn look(&self, memory: &mut Memory) -> Observed {
        let table = self
            .store(GroupId::META)
            .map(|store| store.members())
            .unwrap_or_default();
        memory.members.retain(|member, _| table.contains_key(member));
        let mut looking = Vec::new();
        for (member, context) in table {
            memory.members.entry(member).or_default().context = context;
            let (said, answer) = promise();
            let node = self.clone();
            self.ground.tasks.spawn(Some(self.number), async move {
                said.keep(node.call(member, Ask::Observe, LOOK_TIMEOUT).await);
            });
            looking.push((member, answer));
        }
        for (member, answer) in looking {
            if let Some(Ok(Reply::View(groups))) = answer.await {
                let view = memory.members.entry(member).or_default();
                view.heard = Some(self.local_now());
                view.groups = groups;
            }
        }
        let now = self.local_now();
        Observed {
            since: *memory.since.get_or_insert(now),
            wall_seconds: self.ground.world.borrow().now / (1000 * MS),
            members: memory.members.clone(),
        }
    }

    /// Has steps done, all at the same time; what came of them shows in the next look.
    async fn perform(&self, steps: Vec<Step>, version: u64) {
        let mut doing = Vec::new();
        for Step { action, reason } in steps {
            let (member, ask) = match action {
                Action::Change(change) => {
                    let changed = self.change(change, version).await;
                    self.note_step(&reason, &changed);
                    continue;
                }
                Action::Command { leader, group, command } => {
                    let command = encoded(&Command::Shard(command));
                    (leader, Ask::Execute { group, command })
                }
                Action::Open { member, group } => (member, Ask::Open { group }),
                Action::Create {
                    member,
                    group,
                    territory,
                    source,
                } => {
                    let ask = Ask::Create {
                        group,
                        territory,
                        source,
                    };
                    (member, ask)
                }
                Action::Close { member, group, guard } => (member, Ask::Close { group, guard }),
                Action::Configure {
                    leader,
                    group,
                    step,
                    expected,
                    context: _,
                } => {
                    let ask = Ask::Configure {
                        group,
                        step,
                        expected,
                        context: Bytes::from_static(CONTEXT),
                    };
                    (leader, ask)
                }
                Action::Transfer { leader, group, to } => (leader, Ask::Transfer { group, to }),
                // No keyspace says how its reads are answered.
                Action::Reads { .. } => continue,
                Action::ConfirmSealed { member, group, at } => (member, Ask::ConfirmSealed { group, at }),
                Action::StartSequencer { leader, group, above } => (leader, Ask::StartSequencer { group, above }),
            };
            let (said, answer) = promise();
            let node = self.clone();
            self.ground.tasks.spawn(Some(self.number), async move {
                let done = match node.call(member, ask, STEP_TIMEOUT).await {
                    Ok(Reply::Failure(failure)) => Err(failure),
                    Ok(Reply::Answer(answer)) => answer.result.map(|_| ()).map_err(Failure::Op),
                    Ok(Reply::Done | Reply::Stamp(_) | Reply::View(_)) => Ok(()),
                    Err(_) => Err(Failure::Timeout),
                };
                node.note_step(&reason, &done);
                said.keep(());
            });
            doing.push(answer);
        }
        for answer in doing {
            answer.await;
        }
    }

    fn note_step(&self, reason: &str, done: &Result<(), Failure>) {
        let mut world = self.ground.world.borrow_mut();
        let now = world.now;
        world.trace.note(now, self.number as u64, "step", &[], || match done {
            Ok(()) => format!("done: {reason}"),
            Err(failure) => format!("not done: {reason}: {failure:?}"),
        });
    }

    /// Somebody wishes for something, at the node that conducts.
    async fn wish(&self, rng: &mut Rng) -> Result<(), Failure> {
        let state = self.map().await?;
        if state.version == 0 {
            return Ok(());
        }
        let members: Vec<MemberId> = state.members.keys().copied().collect();
        let (shards_max, hashed) = {
            let weather = &self.ground.world.borrow().weather;
            (weather.shards_max, weather.hashed)
        };
        let change = match rng.below(10) {
            0..7 => state.put_keyspace("default", &draw_spec(rng, members.len(), shards_max, hashed, &state)),
            7 | 8 => {
                let member = *rng.pick(&members).ok_or(Failure::NoLeader)?;
                let leaving = state
                    .members
                    .values()
                    .filter(|record| record.state == MemberState::Draining)
                    .count();
                let to = if leaving == 0 {
                    MemberState::Draining
                } else {
                    MemberState::Active
                };
                let one = state
                    .members
                    .iter()
                    .find(|(_, record)| record.state == MemberState::Draining)
                    .map_or(member, |(member, _)| *member);
                state.set_member_state(one, to)
            }
            _ => {
                let operations: Vec<_> = state.operations.keys().copied().collect();
                match rng.pick(&operations) {
                    Some(operation) => state.cancel(*operation),
                    None => return Ok(()),
                }
            }
        };
        // What makes no sense now is wished for at another time.
        let Ok(change) = change else { return Ok(()) };
        if !change.is_empty() {
            self.ground.world.borrow_mut().counts.wishes += 1;
            self.change(change, state.version).await?;
        }
        Ok(())
    }

    /// At the end: no member leaves, and the keyspace is to be like this.
    async fn last_wish(&self, spec: &KeyspaceSpec) -> Result<(), Failure> {
        loop {
            let state = self.map().await?;
            let draining = state
                .members
                .iter()
                .find(|(_, record)| record.state == MemberState::Draining);
            let change = match draining {
                Some((member, _)) => state.set_member_state(*member, MemberState::Active),
                None => state.put_keyspace("default", spec),
            };
            let change = change.map_err(|error| Failure::No(error.to_string()))?;
            if change.is_empty() {
                return Ok(());
            }
            self.change(change, state.version).await?;
        }
    }
}

fn draw_spec(rng: &mut Rng, members: usize, shards_max: u64, hashed: bool, state: &MetaState) -> KeyspaceSpec {
    let present = state.keyspace("default").map(|(_, record)| record);
    let single = present.is_none_or(|record| record.shards == 1);
    KeyspaceSpec {
        shards: u32::try_from(rng.between(1, shards_max)).expect("invariant: small"),
        replicas: rng
            .chance(800)
            .then(|| u32::try_from(rng.between(1, members as u64)).expect("invariant: small")),
        partitioning: (hashed && single).then_some(Partitioning::Hash {
            slots: SLOTS,
            prefix_segments: None,
        }),
        split_keys: Vec::new(),
        port: None,
        quota_bytes: None,
        reads: None,
    }
}

impl Ground {
    /// The node that leads the meta group in the highest term.
    pub(crate) fn conducting(self: &Rc<Self>) -> Option<Node> {
        let (machine, boot) = {
            let world = self.world.borrow();
            let leading = world.leader(GroupId::META)?;
            (leading, world.machines[leading].boot)
        };
        self.node(machine, boot)
    }
}

/// Somebody wishes for another map.
pub(crate) async fn wish(ground: Rc<Ground>) {
    let mut rng = {
        let mut world = ground.world.borrow_mut();
        Rng::new(world.rng.next_u64())
    };
    if let Some(node) = ground.conducting() {
        // It is somebody at a console: what did not work is tried another time.
        let (said, answer) = promise();
        let number = node.number;
        ground.tasks.spawn(Some(number), async move {
            let _ = node.wish(&mut rng).await;
            said.keep(());
        });
        answer.await;
    }
}

/// What is wanted in the end, said until it is heard.
pub(crate) async fn last_wish(ground: Rc<Ground>) {
    let mut rng = Rng::split(ground.seed, "last wish", 0);
    let (members, shards_max) = {
        let world = ground.world.borrow();
        (world.machines.len(), world.weather.shards_max)
    };
    let spec = draw_spec(&mut rng, members, shards_max, false, &MetaState::default());
    loop {
        if let Some(node) = ground.conducting() {
            let (said, answer) = promise();
            let (number, spec) = (node.number, spec.clone());
            ground
                .tasks
                .spawn(Some(number), async move { said.keep(node.last_wish(&spec).await) });
            if answer.await == Some(Ok(())) {
                ground.world.borrow_mut().last_wish = true;
                return;
            }
        }
        if ground.sleep(None, IDLE_INTERVAL).await.is_none() {
            return;
        }
    }
}
