//! A cluster of real processes on addresses of its own: how it is born, who leads, and whether all members hold the same.

use std::net::Ipv4Addr;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::{Duration, Instant};

use althing_admin::client::{AdminClient, AdminError};
use althing_admin::{AddLearnerRequest, BootstrapRequest, ConfigGuard, NodeStatus};
use althing_api::pb::etcdserverpb::RangeRequest;
use althing_api::pb::etcdserverpb::kv_client::KvClient;
use althing_api::pb::mvccpb::KeyValue;
use tokio::runtime::Runtime;
use tokio::time::timeout;
use tonic::transport::Endpoint;

use super::clock::SkewedClock;
use super::fault::{MemberIndex, Who};
use super::member::{Common, Member};
use super::plan::Abilities;
use super::proxy::{Addresses, Network};
use super::volume::Volumes;
use crate::command::wait_until;
use crate::error::{Error, Result};

/// How many members a cluster may have: fewer have no minority, more have no room in one block of addresses.
pub const MEMBERS: RangeInclusive<usize> = 3..=9;
/// Addresses of one cluster: members from 1, their proxies from 11.
const BLOCK: u8 = 20;
/// Clusters of one process at a time.
const BLOCKS: u8 = 12;

/// How long a look at a member may take: stopped ones never answer.
const LOOK_LIMIT: Duration = Duration::from_millis(500);
/// How long it may take until all members are in, and until all serve again in the end. The machine may be busy with builds.
const PATIENCE: Duration = Duration::from_secs(90);
/// The group that holds the map, and the members.
const META: u64 = 0;
/// The shard that the clients' keyspace begins as, and that its left end stays.
const FIRST_SHARD: u64 = 1;
/// The cluster's id; nobody else is there to confuse it with.
const CLUSTER: &str = "00000000000000c1";

/// A running cluster.
#[derive(Debug)]
pub(crate) struct Cluster {
    pub(crate) members: Vec<Member>,
    pub(crate) network: Network,
    pub(super) common: Common,
    admins: Vec<AdminClient>,
    /// Last: what uses it goes first.
    runtime: Runtime,
}

impl Cluster {
    /// Starts so many members and has them found a cluster. `folder` will hold all that is theirs, `flags` are given to each.
    pub(crate) fn start(
        program: &Path,
        flags: &[String],
        count: usize,
        folder: &Path,
        abilities: Abilities,
    ) -> Result<Self> {
        if !MEMBERS.contains(&count) {
            return Err(Error::refused(
                format!("{count} members survive nothing, or are more than there are addresses for"),
                format!("choose from {} to {}", MEMBERS.start(), MEMBERS.end()),
            ));
        }
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .map_err(Error::io("start", "a runtime for the cluster's network"))?;
        let members = addresses(count)
            .into_iter()
            .enumerate()
            .map(|(number, (host, proxy))| {
                let name = format!("chaos-{number}");
                Member::new(name.clone(), host, proxy, folder.join(name))
            })
            .collect::<Result<Vec<_>>>()?;
        let ways: Vec<Addresses> = members.iter().map(Member::addresses).collect();
        let network = Network::start(runtime.handle(), &ways)?;
        let folders: Vec<PathBuf> = members.iter().map(Member::volume).collect();
        let common = Common {
            program: program.to_owned(),
            volumes: abilities.volumes.then(|| Volumes::mount(&folders)).transpose()?,
            clock: abilities.clocks.then(|| SkewedClock::compile(folder)).transpose()?,
            flags: flags.to_vec(),
        };
        let admins = members
            .iter()
            .map(|member| AdminClient::new(&member.admin_url()))
            .collect::<std::result::Result<_, _>>()
            .map_err(|error| Error::refused(error.to_string(), "see the log of the node"))?;
        let mut cluster = Self {
            members,
            network,
            common,
            admins,
            runtime,
        };
        for member in &mut cluster.members {
            member.start(&cluster.common)?;
        }
        cluster.found()?;
        Ok(cluster)
    }

    /// The first is bootstrapped and takes the others in.
    fn found(&self) -> Result<()> {
        let request = BootstrapRequest {
            cluster_id: CLUSTER.to_owned(),
        };
        wait_until("the first member is bootstrapped", PATIENCE, || {
            self.ask(self.admins[0].bootstrap(&request))
        })?;
        wait_until("the first member serves", PATIENCE, || self.serves(MemberIndex(0)))?;
        let unguarded = ConfigGuard {
            expected_config_index: None,
        };
        for number in 1..self.members.len() {
            let status = wait_until("a member answers", PATIENCE, || self.ask(self.admins[number].status()))?;
            let request = AddLearnerRequest {
                id: status.member_id.clone(),
                name: status.name,
                peer_address: status.peer_address,
                client_urls: status.client_urls,
                expected_config_index: None,
            };
            // What the answer of a change was does not matter: what the leader's list says then does.
            let member_of = |change: &dyn Fn(&AdminClient), voter: bool| -> std::result::Result<(), String> {
                let leader = &self.admins[self.leader_of(META).ok_or("nobody leads")?.0];
                change(leader);
                let list = self.ask(leader.members())?;
                let found = list
                    .members
                    .iter()
                    .any(|member| member.id == status.member_id && !(voter && member.learner));
                if found {
                    Ok(())
                } else {
                    Err("not yet a member".to_owned())
                }
            };
            let add = |leader: &AdminClient| drop(self.ask(leader.add_learner(&request)));
            let promote = |leader: &AdminClient| drop(self.ask(leader.promote(&status.member_id, &unguarded)));
            wait_until("a learner is taken in", PATIENCE, || member_of(&add, false))?;
            wait_until("it becomes a voter", PATIENCE, || member_of(&promote, true))?;
            wait_until("it serves", PATIENCE, || self.serves(MemberIndex(number)))?;
        }
        Ok(())
    }

    fn ask<T>(
        &self,
        question: impl Future<Output = std::result::Result<T, AdminError>>,
    ) -> std::result::Result<T, String> {
        self.runtime.block_on(async {
            timeout(PATIENCE, question)
                .await
                .map_err(|_| "no answer".to_owned())?
                .map_err(|error| error.to_string())
        })
    }

    fn look(&self, member: MemberIndex) -> Option<NodeStatus> {
        if !self.members[member.0].is_running() {
            return None;
        }
        let status = self
            .runtime
            .block_on(async { timeout(LOOK_LIMIT, self.admins[member.0].status()).await });
        status.ok()?.ok()
    }

    fn serves(&self, member: MemberIndex) -> std::result::Result<(), String> {
        let name = &self.members[member.0].name;
        match self.look(member) {
            Some(status) if status.ready => Ok(()),
            Some(status) => Err(format!("{name}: {}", status.not_ready_reason)),
            None => Err(format!("{name} does not answer")),
        }
    }

    pub(crate) fn all(&self) -> impl Iterator<Item = MemberIndex> + use<> {
        (0..self.members.len()).map(MemberIndex)
    }

    /// Who leads the first shard of the clients' keyspace in the newest term, among those that answer.
    pub(crate) fn leader(&self) -> Option<MemberIndex> {
        self.leader_of(FIRST_SHARD)
    }

    fn leader_of(&self, group: u64) -> Option<MemberIndex> {
        self.all()
            .filter_map(|member| {
                let status = self.look(member)?;
                let shard = status
                    .shards
                    .iter()
                    .find(|shard| shard.id == group && shard.role == "Leader")?;
                Some((shard.term, member))
            })
            .max()
            .map(|(_, member)| member)
    }

    /// Who is meant right now.
    pub(crate) fn resolve(&self, who: Who) -> MemberIndex {
        let leader = self.leader().unwrap_or(MemberIndex(0));
        match who {
            Who::Leader => leader,
            Who::Follower(number) => MemberIndex((leader.0 + 1 + number) % self.members.len()),
        }
    }

    /// Starts a member that does not run.
    pub(crate) fn start_member(&mut self, member: MemberIndex) -> Result<()> {
        self.members[member.0].start(&self.common)
    }

    /// Waits until every member serves; then compares all that they hold at one revision. Nobody is started again any more: `now`
    /// is when one that ends by itself has ended.
    ///
    /// # Errors
    /// If one does not come back, or holds something else.
    pub(crate) fn agree(&mut self, now: Duration) -> std::result::Result<i64, String> {
        self.all_serve(now)?;
        self.runtime.block_on(self.same())
    }

    /// Waits until every member serves.
    ///
    /// # Errors
    /// If one does not come back.
    pub(crate) fn all_serve(&mut self, now: Duration) -> std::result::Result<(), String> {
        for member in self.all() {
            let serves = wait_until("every member serves again", PATIENCE, || {
                let state = &mut self.members[member.0];
                let ended = state.has_ended(now).map_err(|error| error.to_string())?;
                if ended || !state.is_running() {
                    return Ok(false);
                }
                self.serves(member).map(|()| true)
            });
            if !serves.map_err(|error| error.to_string())? {
                return Err(format!("{} has ended", self.members[member.0].name));
            }
        }
        Ok(())
    }

    async fn same(&self) -> std::result::Result<i64, String> {
        let (revision, all) = range(&self.members[0].client_url(), Look::Newest).await?;
        for member in &self.members {
            let (_, its) = range(&member.client_url(), Look::At(revision)).await?;
            compare(&all, &its).map_err(|difference| {
                format!(
                    "{} and {} differ at revision {revision}: {difference}",
                    self.members[0].name, member.name
                )
            })?;
        }
        Ok(revision)
    }

    /// As [`Cluster::agree`], of several shards, of which none need reach the revision of another: compares what every member has at
    /// last. Only without writes under way.
    ///
    /// # Errors
    /// If they do not come to hold the same.
    pub(crate) fn agree_at_last(&self) -> std::result::Result<i64, String> {
        let agree = wait_until("all members hold the same", PATIENCE, || {
            self.runtime.block_on(async {
                let (revision, all) = range(&self.members[0].client_url(), Look::Newest).await?;
                for member in &self.members {
                    let (_, its) = range(&member.client_url(), Look::Own).await?;
                    compare(&all, &its).map_err(|difference| format!("{}: {difference}", member.name))?;
                }
                Ok(revision)
            })
        });
        agree.map_err(|error| error.to_string())
    }

    /// Everybody's admin API.
    pub(super) fn admin_urls(&self) -> Vec<String> {
        self.members.iter().map(Member::admin_url).collect()
    }
}

/// What is looked at.
#[derive(Debug, Clone, Copy)]
enum Look {
    /// The newest that there is, linearizable.
    Newest,
    /// At a revision, without asking anybody else.
    At(i64),
    /// Whatever this member has.
    Own,
}

/// All that a member holds.
async fn range(url: &str, look: Look) -> std::result::Result<(i64, Vec<KeyValue>), String> {
    let deadline = Instant::now() + PATIENCE;
    let endpoint = Endpoint::from_shared(url.to_owned()).map_err(|error| error.to_string())?;
    // etcd's way to say "every key".
    let everything = bytes::Bytes::from_static(b"\0");
    let request = RangeRequest {
        key: everything.clone(),
        range_end: everything,
        revision: match look {
            Look::At(revision) => revision,
            Look::Newest | Look::Own => 0,
        },
        serializable: match look {
            Look::Newest => false,
            Look::At(_) | Look::Own => true,
        },
        ..RangeRequest::default()
    };
    loop {
        let mut client = KvClient::new(endpoint.connect_lazy()).max_decoding_message_size(usize::MAX);
        match timeout(PATIENCE, client.range(request.clone())).await {
            Ok(Ok(answer)) => {
                let answer = answer.into_inner();
                return Ok((answer.header.unwrap_or_default().revision, answer.kvs));
            }
            // Such as a revision that it has not reached.
            Ok(Err(status)) if Instant::now() >= deadline => return Err(format!("{url}: {status}")),
            Err(_) => return Err(format!("{url}: no answer")),
            Ok(Err(_)) => tokio::time::sleep(LOOK_LIMIT).await,
        }
    }
}

fn compare(one: &[KeyValue], other: &[KeyValue]) -> std::result::Result<(), String> {
    let show = |kv: Option<&KeyValue>| {
        kv.map_or_else(
            || "nothing".to_owned(),
            |kv| {
                format!(
                    "{} at {} (created {}, version {}, {} bytes)",
                    String::from_utf8_lossy(&kv.key),
                    kv.mod_revision,
                    kv.create_revision,
                    kv.version,
                    kv.value.len()
                )
            },
        )
    };
    match (0..one.len().max(other.len())).find(|at| one.get(*at) != other.get(*at)) {
        None => Ok(()),
        Some(at) => Err(format!("{} and {}", show(one.get(at)), show(other.get(at)))),
    }
}

/// Addresses that only this cluster of this process uses: all of 127.0.0.0/8 is loopback, and ports need not be drawn.
fn addresses(count: usize) -> Vec<(Ipv4Addr, Ipv4Addr)> {
    static NEXT: AtomicU8 = AtomicU8::new(0);
    let block = NEXT.fetch_add(1, Ordering::Relaxed) % BLOCKS * BLOCK;
    let [.., high, low] = std::process::id().to_be_bytes();
    let address = |last: u8| Ipv4Addr::new(127, 1 + high % 250, low, last);
    (1..)
        .take(count)
        .map(|number| (address(block + number), address(block + 10 + number)))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_two_members_and_no_two_clusters_share_an_address() {
        let mut all: Vec<_> = (0..3)
            .flat_map(|_| addresses(*MEMBERS.end()))
            .flat_map(|(host, proxy)| [host, proxy])
            .collect();
        let count = all.len();
        all.sort_unstable();
        all.dedup();
        assert_eq!(all.len(), count);
    }

    #[test]
    fn a_difference_is_named() {
        let kv = |key: &str, mod_revision| KeyValue {
            key: key.to_owned().into(),
            mod_revision,
            ..KeyValue::default()
        };
        assert_eq!(compare(&[kv("a", 1)], &[kv("a", 1)]), Ok(()));
        assert_eq!(
            compare(&[kv("a", 1), kv("b", 2)], &[kv("a", 1)]).unwrap_err(),
            "b at 2 (created 0, version 0, 0 bytes) and nothing"
        );
    }
}
