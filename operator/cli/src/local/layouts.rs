//! The layouts of one cluster on this machine: the operator's loop for `ShardLayout`s, with the same plan and judgement.

use std::collections::BTreeMap;

use althing_admin::client::AdminError;
use althing_admin::{Problem, ProblemReason};
use althing_crds::{DeletionPolicy, ShardLayout, ShardLayoutStatus, ValidatedCluster, ValidatedLayout, names};
use althing_plan::layout::claims::Claim;
use althing_plan::layout::{ClusterSeen, LayoutObserved, LayoutStep, Obstacle, Seen, assess, plan, story};
use althing_plan::model::Observed;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use kube::Resource;

use super::action::{Ask, leader};
use super::declared::Declared;
use super::layout::{ClusterKey, MemberKey};
use super::shared::Shared;
use super::status;
use crate::error::Error;
use crate::view::paint::Tone;

/// What a look at all layouts found.
#[derive(Clone, PartialEq, Debug, Default)]
pub(super) struct Look {
    /// Status by layout.
    pub(super) statuses: BTreeMap<String, ShardLayoutStatus>,
    /// What is worth a line.
    pub(super) lines: Vec<(Tone, String)>,
    /// What is being done or waited for, a sentence each.
    pub(super) why: Vec<String>,
    /// Something is under way.
    pub(super) busy: bool,
}

/// What all layouts of a cluster have in common at one look.
struct Round<'a> {
    shared: &'a Shared,
    key: &'a ClusterKey,
    members: u32,
    seen: ClusterSeen,
    claims: Vec<Claim>,
    /// Admin URL of the member that leads.
    leader: Option<String>,
    layout: Seen,
    /// Client ports of the members.
    ports: Vec<u16>,
    now: &'a Time,
}

/// Looks at every layout once, and asks for what is not as declared.
pub(super) async fn look(
    shared: &Shared,
    key: &ClusterKey,
    declared: &Declared,
    cluster: &ValidatedCluster,
    observed: &Observed,
    before: &BTreeMap<String, ShardLayoutStatus>,
    now: &Time,
) -> Result<Look, Error> {
    let mut look = Look::default();
    if declared.layouts.is_empty() {
        return Ok(look);
    }
    let ports = |ordinal| {
        shared.ports(&MemberKey {
            cluster: key.clone(),
            ordinal,
        })
    };
    let leader = leader(observed).ok().and_then(|(_, ordinal)| ports(ordinal));
    let leader = leader.map(|ports| ports.admin_url());
    let mut round = Round {
        layout: ask(shared, leader.as_deref()).await,
        shared,
        key,
        members: cluster.members.get(),
        seen: ClusterSeen {
            bootstrapped: observed.bootstrapped,
            paused: cluster.paused,
            deleting: cluster.deleting,
        },
        claims: declared.layouts.iter().map(claim).collect(),
        leader,
        ports: observed
            .slots
            .keys()
            .filter_map(|ordinal| Some(ports(*ordinal)?.client))
            .collect(),
        now,
    };
    for (name, raw) in &declared.layouts {
        let nothing = ShardLayoutStatus::default();
        round
            .turn(name, raw, before.get(name).unwrap_or(&nothing), &mut look)
            .await?;
    }
    Ok(look)
}

async fn ask(shared: &Shared, leader: Option<&str>) -> Seen {
    match leader {
        Some(url) => match shared.asker.layout(url).await {
            Ok(layout) => Seen::Layout(layout),
            Err(error) if error.unknown_path() => Seen::NotServed,
            Err(_) => Seen::NoLeader,
        },
        None => Seen::NoLeader,
    }
}

fn claim((name, layout): (&String, &ShardLayout)) -> Claim {
    let born = layout.meta().creation_timestamp.as_ref();
    Claim {
        layout: name.clone(),
        born: born.map_or(0, |born| born.0.as_second()),
        keyspace: layout.spec.keyspace.clone(),
        port: layout.spec.port.and_then(|port| u16::try_from(port).ok()),
    }
}

impl Round<'_> {
    async fn turn(
        &mut self,
        name: &str,
        raw: &ShardLayout,
        before: &ShardLayoutStatus,
        look: &mut Look,
    ) -> Result<(), Error> {
        let mut layout = ValidatedLayout::try_from(raw).map_err(|invalid| Error::Manifest {
            complaints: vec![invalid.to_string()],
        })?;
        let first = before.conditions.is_empty();
        // Members share this machine's one address, so only a single one can have a port that is the same on all.
        if let Some(port) = layout.port.filter(|_| self.members > 1) {
            layout.port = None;
            if first {
                let message = format!(
                    "{}: spec.port {port} of {name} is for Kubernetes; on one machine the members share an address, and keyspace {} is reached by name at the members' own ports",
                    self.key.name, layout.keyspace
                );
                look.lines.push((Tone::Warn, message));
            }
        }
        let observed = LayoutObserved {
            cluster: Some(self.seen),
            claims: self.claims.clone(),
            finalizer: layout.deletion_policy == DeletionPolicy::Delete,
            layout: self.layout.clone(),
        };
        let planned = plan(&layout, &observed);
        let mut refused = None;
        for (step, reason) in &planned.steps {
            match self.step(name, &layout, step).await {
                Ok(()) => look.lines.push((
                    Tone::Plain,
                    format!("{}: {} {} ({reason})", self.key.name, step.word(), layout.keyspace),
                )),
                Err(obstacle) => refused = Some(obstacle),
            }
        }
        if !planned.steps.is_empty() {
            self.layout = ask(self.shared, self.leader.as_deref()).await;
            look.busy = true;
        }
        if layout.deleting {
            look.busy = true;
            look.statuses.insert(name.to_owned(), before.clone());
            return Ok(());
        }
        let observed = LayoutObserved {
            layout: self.layout.clone(),
            ..observed
        };
        let assessment = assess(&layout, &observed, &planned, refused.as_ref());
        let endpoint = endpoint(&layout, &self.ports);
        let status = status::layout(raw.metadata.generation, &assessment, &endpoint, before, self.now);
        self.tell(name, &layout, before, &status, look);
        look.statuses.insert(name.to_owned(), status);
        Ok(())
    }

    async fn step(&self, name: &str, layout: &ValidatedLayout, step: &LayoutStep) -> Result<(), Obstacle> {
        let ask = match step {
            // Nothing here deletes a layout behind the supervisor's back.
            LayoutStep::AddFinalizer => return Ok(()),
            LayoutStep::RemoveFinalizer => {
                let forgotten = self.shared.hub.forget_layout(self.key, name);
                return forgotten.map_err(|error| failed(error.to_string()));
            }
            LayoutStep::Put(request) => Ask::PutKeyspace(layout.keyspace.clone(), request.clone()),
            LayoutStep::Drop => Ask::DropKeyspace(layout.keyspace.clone()),
        };
        let Some(leader) = &self.leader else {
            return Err(failed("there is no leader to ask".to_owned()));
        };
        match self.shared.asker.ask(leader, ask).await {
            Ok(()) => Ok(()),
            Err(AdminError::Refused {
                problem:
                    Problem {
                        reason: ProblemReason::Invalid,
                        message,
                        ..
                    },
                ..
            }) => Err(Obstacle {
                reason: "Refused",
                message,
                stuck: true,
            }),
            Err(error) => Err(failed(error.to_string())),
        }
    }

    fn tell(
        &self,
        name: &str,
        layout: &ValidatedLayout,
        before: &ShardLayoutStatus,
        status: &ShardLayoutStatus,
        look: &mut Look,
    ) {
        let cluster = &self.key.name;
        for told in story(&layout.keyspace, before, status) {
            look.lines.push((Tone::Plain, format!("{cluster}: {}", told.note)));
        }
        let is =
            |status: &ShardLayoutStatus, kind: &str| condition(status, kind).is_some_and(|one| one.status == "True");
        // What waits without being worked on (an empty keyspace has nothing to be cut at) can wait for the next slow look.
        look.busy |= !status.operations.is_empty();
        let Some(ready) = condition(status, "Ready") else {
            return;
        };
        if ready.status != "True" {
            look.why.push(format!(
                "ShardLayout {name} is not ready ({}): {}.",
                ready.reason, ready.message
            ));
        } else if let Some(working) = condition(status, "Progressing").filter(|one| one.status == "True") {
            look.why.push(format!(
                "ShardLayout {name} is being worked on ({}): {}.",
                working.reason, working.message
            ));
        }
        let was = condition(before, "Ready").map(|one| (one.status.as_str(), one.reason.as_str()));
        if was == Some((ready.status.as_str(), ready.reason.as_str())) {
            return;
        }
        if ready.status == "True" {
            look.lines.push((Tone::Good, format!("{cluster}: {}", ready.message)));
        } else if is(status, "Degraded") {
            look.lines
                .push((Tone::Warn, format!("{cluster}: ShardLayout {name}: {}", ready.message)));
        }
    }
}

/// Where the keyspace is reached: at its own port, or by its name, which is a name of this machine (RFC 6761, section 6.3).
fn endpoint(layout: &ValidatedLayout, ports: &[u16]) -> String {
    if let Some(port) = layout.port {
        return format!("127.0.0.1:{port}");
    }
    let host = if layout.keyspace == names::DEFAULT_KEYSPACE {
        "127.0.0.1".to_owned()
    } else {
        format!("{}.localhost", layout.keyspace)
    };
    let all: Vec<String> = ports.iter().map(|port| format!("{host}:{port}")).collect();
    all.join(",")
}

fn condition<'a>(status: &'a ShardLayoutStatus, kind: &str) -> Option<&'a Condition> {
    status.conditions.iter().find(|condition| condition.type_ == kind)
}

fn failed(message: String) -> Obstacle {
    Obstacle {
        reason: "StepFailed",
        message,
        stuck: false,
    }
}
