//! The conductor's shell: looks, lets the pure conductor think, and has its steps done. It runs on every node and works only on the one
//! that leads the meta group.

use crate::ask::{Ask, Reply};
use crate::calls::Calls;
use crate::control::{Control, PositionForm, Said, StepForm, ViewForm, guard_form, spec_bytes};
use crate::local::Local;
use crate::members::MemberInfo;
use crate::metrics::OperationKind;
use crate::shared::Shared;
use althing_raft::ids::{GroupId, MemberId, Now};
use althing_raft::io::Role;
use althing_raft::roster::Footprint;
use althing_shard::conductor::{Action, Limits, MemberView, Observed, Pending, Step, conduct};
use althing_shard::map::{MemberRecord, Work};
use althing_shard::meta::{MetaChange, MetaError, MetaState};
use althing_store::codec::encode_command;
use althing_store::ops::{Command, KeyRange, OpResult, Range};
use althing_store::partition::RevisionSource;
use bytes::{Bytes, BytesMut};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};
use tokio::task::JoinSet;

/// Between two rounds while something is under way: a step of an operation takes about as long.
const BUSY_INTERVAL: Duration = Duration::from_millis(50);
/// Between two rounds while nothing is: how soon a wish is noticed.
const IDLE_INTERVAL: Duration = Duration::from_secs(1);
/// Longest time that one member may take to answer a look.
const LOOK_TIMEOUT: Duration = Duration::from_secs(1);
/// Longest time that one step may take before the next round sees what became of it.
const STEP_TIMEOUT: Duration = Duration::from_secs(5);

/// Conducts.
pub struct Conductor {
    shared: Arc<Shared>,
    local: Local,
    calls: Arc<Calls>,
    /// What waits, for people: from the last round of this node, if it conducts.
    pending: Mutex<Vec<Pending>>,
    /// What was seen in the last round of this node, if it conducts.
    seen: Mutex<Arc<Observed>>,
}

/// What is known of members between two rounds.
#[derive(Default)]
struct Memory {
    since: Option<Now>,
    members: BTreeMap<MemberId, MemberView>,
    /// The number of each group as last told (see `Control::Observe`).
    numbers: BTreeMap<MemberId, BTreeMap<u64, u64>>,
}

impl Conductor {
    /// For a node.
    #[must_use]
    pub fn new(shared: Arc<Shared>, local: Local, calls: Arc<Calls>) -> Self {
        Self {
            shared,
            local,
            calls,
            pending: Mutex::default(),
            seen: Mutex::default(),
        }
    }

    /// What waits and why; empty where nobody conducts.
    #[must_use]
    pub fn pending(&self) -> Vec<Pending> {
        self.pending.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// How the groups of all members are, as last seen; empty where nobody conducts.
    #[must_use]
    pub fn seen(&self) -> Arc<Observed> {
        Arc::clone(&self.seen.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn set_seen(&self, seen: Arc<Observed>) {
        *self.seen.lock().unwrap_or_else(PoisonError::into_inner) = seen;
    }

    fn set_pending(&self, pending: Vec<Pending>) {
        *self.pending.lock().unwrap_or_else(PoisonError::into_inner) = pending;
    }

    fn leads(&self) -> bool {
        self.shared
            .soft(GroupId::META)
            .is_some_and(|soft| soft.role == Role::Leader)
    }

    /// Runs until the task is aborted.
    pub async fn run(self: Arc<Self>) {
        let mut memory = Memory::default();
        loop {
            let interval = if self.leads() {
                match self.round(&mut memory).await {
                    Ok(busy) if busy => BUSY_INTERVAL,
                    Ok(_) => IDLE_INTERVAL,
                    Err(error) => {
                        tracing::warn!(%error, "the conductor cannot go on now");
                        IDLE_INTERVAL
                    }
                }
            } else {
                // Whoever conducts next begins to look anew.
                memory = Memory::default();
                self.set_pending(Vec::new());
                self.set_seen(Arc::default());
                self.shared.metrics.see_operations(None);
                IDLE_INTERVAL
            };
            tokio::time::sleep(interval).await;
        }
    }

    /// The map as of now.
    ///
    /// # Errors
    /// If there is no quorum, or the rows cannot be read.
    pub async fn state(&self) -> Result<MetaState, ConductError> {
        self.shared
            .catch_up(GroupId::META, Footprint::All)
            .await
            .map_err(|error| ConductError::Meta(error.to_string()))?;
        load(&self.local)
    }

    /// Makes a change of the map, if it is still the one that it was made for.
    ///
    /// # Errors
    /// If somebody else changed it first, or there is no quorum.
    pub async fn change(&self, change: MetaChange, version: u64) -> Result<(), ConductError> {
        let mut bytes = BytesMut::new();
        encode_command(&Command::Txn(change.into_txn(version)), &mut bytes);
        let (answer, _) = self
            .local
            .execute(GroupId::META, bytes.freeze())
            .await
            .map_err(|error| ConductError::Meta(error.to_string()))?;
        match answer.result {
            Ok(OpResult::Txn { succeeded: true, .. }) => Ok(()),
            Ok(_) => Err(ConductError::Raced { version }),
            Err(error) => Err(ConductError::Meta(error.to_string())),
        }
    }

    /// One look and what follows from it; says whether something is under way.
    async fn round(&self, memory: &mut Memory) -> Result<bool, ConductError> {
        let state = self.state().await?;
        if state.version == 0 {
            self.change(state.genesis(&self.founders()?)?, 0).await?;
            return Ok(true);
        }
        let operations = state.operations.iter();
        let operations = operations.map(|(id, operation)| (id.0, kind(&operation.work)));
        self.shared.metrics.see_operations(Some(operations.collect()));
        let seen = Arc::new(self.look(memory).await);
        self.set_seen(Arc::clone(&seen));
        let plan = conduct(&state, &seen, self.shared.clock.now(), &Limits::PRODUCTION);
        self.set_pending(plan.pending);
        let busy = !plan.steps.is_empty() || !state.operations.is_empty();
        self.perform(plan.steps, state.version).await;
        Ok(busy)
    }

    /// Where the first shard's replicas are when there is no map yet.
    fn founders(&self) -> Result<BTreeMap<MemberId, MemberRecord>, ConductError> {
        let soft = self.shared.soft(GroupId::FIRST_SHARD).ok_or_else(|| {
            ConductError::Meta("shard 1 is not here, so the first map waits for its leader".to_owned())
        })?;
        let table = self
            .local
            .store(GroupId::META)
            .map(|store| store.members())
            .unwrap_or_default();
        let record = |member: &MemberId| MemberRecord {
            name: table
                .get(member)
                .map(|context| MemberInfo::decode(context).name)
                .unwrap_or_default(),
            ..MemberRecord::default()
        };
        Ok(soft
            .config
            .voters
            .iter()
            .map(|member| (*member, record(member)))
            .collect())
    }

    /// Asks every member how its groups are, all at the same time. Whoever does not answer is as it was.
    async fn look(&self, memory: &mut Memory) -> Observed {
        let table = self
            .local
            .store(GroupId::META)
            .map(|store| store.members())
            .unwrap_or_default();
        memory.members.retain(|member, _| table.contains_key(member));
        memory.numbers.retain(|member, _| table.contains_key(member));
        let mut looking = JoinSet::new();
        for member in table.keys().copied() {
            let known = memory.numbers.get(&member).cloned().unwrap_or_default();
            let calls = Arc::clone(&self.calls);
            looking.spawn(async move {
                (
                    member,
                    ask_control(&calls, member, &Control::Observe { known }, LOOK_TIMEOUT).await,
                )
            });
        }
        let mut answers = Vec::new();
        while let Some(answer) = looking.join_next().await {
            // A task that panicked has told it already.
            answers.extend(answer.ok());
        }
        let now = self.shared.clock.now();
        for (member, context) in table {
            let view = memory.members.entry(member).or_default();
            view.context = context;
            if view.name.is_empty() {
                view.name = MemberInfo::decode(&view.context).name;
            }
        }
        for (member, said) in answers {
            match said {
                Ok(Said::View(form)) => memory.take_in(member, *form, now),
                Ok(Said::Done | Said::No(_)) => tracing::warn!(%member, "answers a look with something else"),
                Err(error) => tracing::debug!(%member, error, "does not say how it is"),
            }
        }
        Observed {
            since: *memory.since.get_or_insert(now),
            wall_seconds: wall_seconds(),
            members: memory.members.clone(),
        }
    }

    /// Has steps done, all at the same time; what came of them shows in the next look.
    async fn perform(&self, steps: Vec<Step>, version: u64) {
        let mut doing = JoinSet::new();
        for Step { action, reason } in steps {
            tracing::debug!(?action, reason, "the conductor's next step");
            let (member, control) = match action {
                Action::Change(change) => {
                    match self.change(change, version).await {
                        Ok(()) => tracing::info!(reason, "the shard map changed"),
                        Err(error) => tracing::debug!(%error, "the shard map did not change"),
                    }
                    continue;
                }
                Action::Command { leader, group, command } => {
                    let mut bytes = BytesMut::new();
                    encode_command(&Command::Shard(command), &mut bytes);
                    let command = bytes.freeze();
                    let calls = Arc::clone(&self.calls);
                    doing.spawn(async move {
                        let body = Ask::Execute { group, command }.encode();
                        let told = calls.call(leader, body, STEP_TIMEOUT).await;
                        let told = told.map_err(|error| error.to_string()).and_then(|body| {
                            match Reply::decode(body).map_err(|error| error.to_string())? {
                                Reply::Answer(answer) => answer.result.map(|_| ()).map_err(|error| error.to_string()),
                                Reply::Failure(failure) => Err(failure.to_string()),
                                Reply::Stamp(_) | Reply::Control(_) => Err("an answer to something else".to_owned()),
                            }
                        });
                        (reason, told)
                    });
                    continue;
                }
                Action::Open { member, group } => (member, Control::Open { group: group.0 }),
                Action::Create {
                    member,
                    group,
                    territory,
                    source,
                } => (
                    member,
                    Control::Create {
                        group: group.0,
                        territory: (&territory).into(),
                        sequenced: source == RevisionSource::Sequenced,
                    },
                ),
                Action::Close { member, group, guard } => {
                    let (life, last) = guard_form(guard);
                    let group = group.0;
                    (member, Control::Close { group, life, last })
                }
                Action::Configure {
                    leader,
                    group,
                    step,
                    expected,
                    context,
                } => (
                    leader,
                    Control::Configure {
                        group: group.0,
                        step: StepForm::from(&step),
                        expected: expected.0,
                        context: context.to_vec(),
                    },
                ),
                Action::Transfer { leader, group, to } => (
                    leader,
                    Control::Transfer {
                        group: group.0,
                        to: to.0,
                    },
                ),
                Action::Reads { leader, group, spec } => (
                    leader,
                    Control::Reads {
                        group: group.0,
                        spec: spec_bytes(&spec),
                    },
                ),
                Action::ConfirmSealed { member, group, at } => (
                    member,
                    Control::ConfirmSealed {
                        group: group.0,
                        at: PositionForm::from(at),
                    },
                ),
                Action::StartSequencer { leader, group, above } => (
                    leader,
                    Control::StartSequencer {
                        group: group.0,
                        above: above.0,
                    },
                ),
            };
            let calls = Arc::clone(&self.calls);
            doing.spawn(async move {
                let told = match ask_control(&calls, member, &control, STEP_TIMEOUT).await {
                    Ok(Said::Done) => Ok(()),
                    Ok(Said::No(why)) | Err(why) => Err(why),
                    Ok(Said::View(_)) => Err("an answer to something else".to_owned()),
                };
                (reason, told)
            });
        }
        while let Some(done) = doing.join_next().await {
            match done {
                Ok((reason, Ok(()))) => tracing::info!(reason, "done"),
                Ok((reason, Err(error))) => tracing::info!(reason, error, "not done yet"),
                Err(error) => tracing::error!(%error, "a step ended early"),
            }
        }
    }
}

impl Memory {
    fn take_in(&mut self, member: MemberId, form: ViewForm, now: Now) {
        let view = self.members.entry(member).or_default();
        view.name = form.name;
        view.labels = form.labels;
        view.heard = Some(now);
        view.groups.retain(|group, _| form.groups.contains_key(&group.0));
        for group in form.changed {
            view.groups.insert(GroupId(group.group), group.into());
        }
        // What it did not tell although it is not known here is asked for again.
        let told = form
            .groups
            .into_iter()
            .filter(|(group, _)| view.groups.contains_key(&GroupId(*group)));
        self.numbers.insert(member, told.collect());
    }
}

/// Reads the map as this member has it.
///
/// # Errors
/// If the meta group is not here, or its rows cannot be read.
pub fn load(local: &Local) -> Result<MetaState, ConductError> {
    let store = local
        .store(GroupId::META)
        .map_err(|error| ConductError::Meta(error.to_string()))?;
    let all = Range::of(KeyRange::From(Bytes::new()));
    let (_, rows) = store
        .range(&all)
        .map_err(|error| ConductError::Meta(error.to_string()))?
        .map_err(|error| ConductError::Meta(error.to_string()))?;
    Ok(MetaState::load(rows.kvs.into_iter().map(|kv| (kv.key, kv.value)))?)
}

/// An operation's kind, as it is counted.
fn kind(work: &Work) -> OperationKind {
    match work {
        Work::Create { .. } => OperationKind::Create,
        Work::Sequence { .. } => OperationKind::Sequence,
        Work::Split { .. } => OperationKind::Split,
        Work::Merge { .. } => OperationKind::Merge,
        Work::Move { .. } => OperationKind::Move,
    }
}

/// Asks a member for something about groups.
///
/// # Errors
/// Why there is no answer.
pub async fn ask_control(
    calls: &Calls,
    member: MemberId,
    control: &Control,
    timeout: Duration,
) -> Result<Said, String> {
    let json = serde_json::to_vec(control).map_err(|error| error.to_string())?;
    let body = Ask::Control(json.into()).encode();
    let body = calls
        .call(member, body, timeout)
        .await
        .map_err(|error| error.to_string())?;
    match Reply::decode(body).map_err(|error| error.to_string())? {
        Reply::Control(json) => serde_json::from_slice(&json).map_err(|error| error.to_string()),
        Reply::Failure(failure) => Err(failure.to_string()),
        Reply::Answer(_) | Reply::Stamp(_) => Err("an answer to something else".to_owned()),
    }
}

#[expect(
    clippy::disallowed_methods,
    reason = "recorded for people; the conductor says what else it decides"
)]
pub(crate) fn wall_seconds() -> u64 {
    SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .map_or(0, |since| since.as_secs())
}

/// Why the map was not read or changed.
#[derive(Debug, thiserror::Error)]
pub enum ConductError {
    /// The meta group does not answer.
    #[error("the meta group: {0}; look at group 0 in /v1/status")]
    Meta(String),
    /// Somebody else was first.
    #[error("the shard map is no longer the one of version {version}; look again")]
    Raced {
        /// The version that it was.
        version: u64,
    },
    /// The rows, or what was asked of them.
    #[error(transparent)]
    Map(#[from] MetaError),
}
