//! From the planner's steps to what is done on one machine. Pure.

use althing_admin::{AddLearnerRequest, BootstrapRequest, ConfigGuard, KeyspaceRequest, TransferLeaderRequest};
use althing_plan::model::{Consensus, MemberId, Observed, Ordinal, Step};

use super::ports::Ports;

/// What to do on this machine.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Action {
    /// Draw a cluster id and record it.
    RecordClusterId,
    /// Record a cluster id that was found.
    AdoptCluster(String),
    /// Record that the cluster exists.
    RecordBootstrapped,
    /// Make a member's folder.
    MakeVolume(Ordinal),
    /// Let a member's process run from now on.
    Start(Ordinal),
    /// Let it run no longer.
    Stop(Ordinal),
    /// Delete a member's folder.
    DeleteVolume(Ordinal),
    /// Ask a node.
    Ask {
        /// Its admin API.
        admin_url: String,
        /// What.
        ask: Ask,
    },
}

/// A request to a node's admin API.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Ask {
    /// Become the first member.
    Bootstrap(BootstrapRequest),
    /// Take in a learner.
    AddLearner(AddLearnerRequest),
    /// Give a learner its vote.
    Promote(String, ConfigGuard),
    /// Take a member out.
    Remove(String, ConfigGuard),
    /// Hand leadership over.
    TransferLeader(u64, TransferLeaderRequest),
    /// Have a member emptied of replicas.
    Drain(String),
    /// Let a member take replicas again.
    Undrain(String),
    /// Make or change a keyspace.
    PutKeyspace(String, KeyspaceRequest),
    /// End a keyspace.
    DropKeyspace(String),
}

/// What a step means here. An error says what the plan relied on and is not there: observing again cures it.
pub(crate) fn action(
    cluster: &str,
    step: &Step,
    observed: &Observed,
    ports: impl Fn(Ordinal) -> Option<Ports>,
) -> Result<Action, String> {
    let admin_url = |ordinal: Ordinal| {
        ports(ordinal)
            .map(Ports::admin_url)
            .ok_or_else(|| format!("{} has no ports yet", ordinal.member(cluster)))
    };
    let at_leader = |ask: Ask| {
        let (_, ordinal) = leader(observed)?;
        Ok(Action::Ask {
            admin_url: admin_url(ordinal)?,
            ask,
        })
    };
    let guard = |index: u64| ConfigGuard {
        expected_config_index: Some(index),
    };
    match step {
        Step::RecordClusterId => Ok(Action::RecordClusterId),
        Step::AdoptCluster { cluster_id } => Ok(Action::AdoptCluster(cluster_id.clone())),
        Step::RecordBootstrapped => Ok(Action::RecordBootstrapped),
        Step::CreateVolume(ordinal) => Ok(Action::MakeVolume(*ordinal)),
        Step::StartMember(ordinal) => Ok(Action::Start(*ordinal)),
        Step::StopMember(ordinal) => Ok(Action::Stop(*ordinal)),
        Step::DeleteVolume(ordinal) => Ok(Action::DeleteVolume(*ordinal)),
        Step::Bootstrap { ordinal, cluster_id } => Ok(Action::Ask {
            admin_url: admin_url(*ordinal)?,
            ask: Ask::Bootstrap(BootstrapRequest {
                cluster_id: cluster_id.clone(),
            }),
        }),
        Step::AddLearner {
            ordinal,
            member,
            expected_config_index,
        } => {
            let report = observed.slots.get(ordinal).and_then(|slot| slot.report.as_ref());
            let report = report.filter(|report| report.member_id == *member);
            let report = report.ok_or_else(|| format!("{} did not answer as {member}", ordinal.member(cluster)))?;
            at_leader(Ask::AddLearner(AddLearnerRequest {
                id: member.0.clone(),
                name: ordinal.member(cluster),
                peer_address: report.peer_address.clone(),
                client_urls: report.client_urls.clone(),
                expected_config_index: Some(*expected_config_index),
            }))
        }
        Step::Promote {
            member,
            expected_config_index,
        } => at_leader(Ask::Promote(member.0.clone(), guard(*expected_config_index))),
        Step::RemoveMember {
            member,
            expected_config_index,
        } => at_leader(Ask::Remove(member.0.clone(), guard(*expected_config_index))),
        Step::TransferLeader { from, to } => {
            let ordinal =
                ordinal_of(observed, from).ok_or_else(|| format!("the leader {from} is none of this folder"))?;
            let request = TransferLeaderRequest { to: Some(to.0.clone()) };
            let (consensus, _) = leader(observed)?;
            Ok(Action::Ask {
                admin_url: admin_url(ordinal)?,
                ask: Ask::TransferLeader(consensus.group, request),
            })
        }
        Step::Drain { member } => at_leader(Ask::Drain(member.0.clone())),
        Step::Undrain { member } => at_leader(Ask::Undrain(member.0.clone())),
    }
}

/// The leader of the members' group, and where it lives.
pub(crate) fn leader(observed: &Observed) -> Result<(&Consensus, Ordinal), String> {
    let consensus = observed.consensus.as_ref().ok_or("there is no leader to ask")?;
    let leader = &consensus.leader;
    let ordinal = ordinal_of(observed, leader).ok_or_else(|| format!("the leader {leader} is none of this folder"))?;
    Ok((consensus, ordinal))
}

/// Where a member lives.
fn ordinal_of(observed: &Observed, member: &MemberId) -> Option<Ordinal> {
    observed
        .slots
        .iter()
        .find(|(_, slot)| slot.report.as_ref().is_some_and(|report| report.member_id == *member))
        .map(|(ordinal, _)| *ordinal)
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use althing_plan::model::{Consensus, Report, Slot, Volume, Workload};
    use expect_test::expect;

    use super::*;

    fn id(digit: u32) -> MemberId {
        MemberId(digit.to_string().repeat(16))
    }

    fn observed(leader: Option<u32>) -> Observed {
        let slot = |n: u32| Slot {
            volume: Volume::Present,
            workload: Workload::Running,
            workload_hash: None,
            host: None,
            labels: BTreeMap::new(),
            report: Some(Report {
                member_id: id(n),
                cluster_id: None,
                ready: true,
                not_ready_reason: String::new(),
                peer_address: format!("127.0.0.1:{}", 2380 + 10 * n),
                client_urls: vec![format!("http://127.0.0.1:{}", 2379 + 10 * n)],
                version: "0.1.0".to_owned(),
            }),
        };
        Observed {
            slots: (0..2).map(|n| (Ordinal(n), slot(n))).collect(),
            consensus: leader.map(|leader| Consensus {
                group: 0,
                leader: id(leader),
                config_index: 7,
                voters: BTreeSet::from([id(leader)]),
                learners: BTreeSet::new(),
                names: BTreeMap::new(),
                active: BTreeSet::new(),
                caught_up: BTreeSet::new(),
                lag: BTreeMap::new(),
            }),
            ..Observed::default()
        }
    }

    fn ports(ordinal: Ordinal) -> Option<Ports> {
        let first = 2379 + 10 * u16::try_from(ordinal.0).ok()?;
        (ordinal.0 < 2).then_some(Ports {
            client: first,
            peer: first + 1,
            admin: first + 2,
        })
    }

    #[test]
    fn membership_is_asked_of_the_leader_and_bootstrap_of_the_member_itself() {
        let at = |step: &Step| match action("orders", step, &observed(Some(1)), ports) {
            Ok(Action::Ask { admin_url, ask }) => format!("{admin_url} {ask:?}\n"),
            other => format!("{other:?}\n"),
        };
        let lines = [
            at(&Step::Bootstrap {
                ordinal: Ordinal(0),
                cluster_id: "c".repeat(16),
            }),
            at(&Step::AddLearner {
                ordinal: Ordinal(0),
                member: id(0),
                expected_config_index: 7,
            }),
            at(&Step::Promote {
                member: id(0),
                expected_config_index: 8,
            }),
            at(&Step::RemoveMember {
                member: id(0),
                expected_config_index: 9,
            }),
            at(&Step::TransferLeader { from: id(1), to: id(0) }),
            at(&Step::Drain { member: id(0) }),
            at(&Step::Undrain { member: id(0) }),
        ];
        expect![[r#"
            http://127.0.0.1:2381 Bootstrap(BootstrapRequest { cluster_id: "cccccccccccccccc" })
            http://127.0.0.1:2391 AddLearner(AddLearnerRequest { id: "0000000000000000", name: "orders-0", peer_address: "127.0.0.1:2380", client_urls: ["http://127.0.0.1:2379"], expected_config_index: Some(7) })
            http://127.0.0.1:2391 Promote("0000000000000000", ConfigGuard { expected_config_index: Some(8) })
            http://127.0.0.1:2391 Remove("0000000000000000", ConfigGuard { expected_config_index: Some(9) })
            http://127.0.0.1:2391 TransferLeader(0, TransferLeaderRequest { to: Some("0000000000000000") })
            http://127.0.0.1:2391 Drain("0000000000000000")
            http://127.0.0.1:2391 Undrain("0000000000000000")
        "#]]
        .assert_eq(&lines.concat());
    }

    #[test]
    fn what_the_plan_relied_on_and_is_gone_is_an_error_and_not_a_guess() {
        let add = Step::AddLearner {
            ordinal: Ordinal(0),
            member: id(9),
            expected_config_index: 7,
        };
        let promote = Step::Promote {
            member: id(0),
            expected_config_index: 7,
        };
        let bootstrap = Step::Bootstrap {
            ordinal: Ordinal(5),
            cluster_id: "c".repeat(16),
        };
        let transfer = Step::TransferLeader { from: id(9), to: id(0) };
        let why = |step, leader| action("orders", step, &observed(leader), ports).unwrap_err();
        assert_eq!(why(&add, Some(1)), "orders-0 did not answer as 9999999999999999");
        assert_eq!(why(&promote, None), "there is no leader to ask");
        assert_eq!(
            why(&promote, Some(9)),
            "the leader 9999999999999999 is none of this folder"
        );
        assert_eq!(why(&bootstrap, None), "orders-5 has no ports yet");
        assert_eq!(
            why(&transfer, Some(1)),
            "the leader 9999999999999999 is none of this folder"
        );
    }
}
