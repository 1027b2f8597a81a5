//! Three members of either system on loopback, with their data below one folder.

use std::fs::{self, OpenOptions};
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use serde_json::{Value, json};

use super::disk::SlowDisk;
use super::http::call;
use super::plan::split_keys;
use super::report::System;
use super::scrape::Scrape;
use super::usage::{self, Usage};
use crate::command::{run, tail, wait_until};
use crate::error::{Error, Result};
use crate::parts::Parts;

/// Members of each system.
pub(super) const MEMBERS: usize = 3;
/// A member opens an empty volume and fills its first log segment in a second or two.
const READY_LIMIT: Duration = Duration::from_secs(60);
/// How much of a member's log an error carries.
const LOG_TAIL: usize = 2000;
/// The id of the cluster of members of ours.
const CLUSTER: &str = "00000000000000be";

/// Programs that are started.
pub(super) struct Programs {
    etcd: PathBuf,
    pub(super) etcdctl: PathBuf,
    althing: PathBuf,
    /// What members of ours have for a disk, if not the machine's.
    disk: Option<SlowDisk>,
}

impl Programs {
    /// etcd's from its parts, also where only ours is measured: its `etcdctl` tells when a member serves.
    pub(super) fn new(etcd: &Parts, althing: &Path, disk: Option<SlowDisk>) -> Self {
        Self {
            etcd: etcd.path("etcd"),
            etcdctl: etcd.path("etcdctl"),
            althing: althing.to_owned(),
            disk,
        }
    }
}

struct Member {
    client: SocketAddr,
    peer: SocketAddr,
    /// Ours only.
    admin: SocketAddr,
    log: PathBuf,
    process: Child,
}

/// Running members; they end when this is dropped, and with this process's main thread, however that ends.
pub(super) struct Cluster {
    members: Vec<Member>,
}

impl Drop for Cluster {
    fn drop(&mut self) {
        for member in &mut self.members {
            // Best effort: it may have ended before.
            drop(member.process.kill());
            drop(member.process.wait());
        }
    }
}

impl Cluster {
    /// Starts one and waits until every member serves.
    pub(super) fn start(system: System, programs: &Programs, folder: &Path) -> Result<Self> {
        let folder = folder.join(system.name().to_lowercase());
        fs::create_dir_all(&folder).map_err(Error::io("create", &folder))?;
        let addresses: Vec<[SocketAddr; 3]> = (0..MEMBERS)
            .map(host)
            .map(|ip| Ok([free_address(ip)?, free_address(ip)?, free_address(ip)?]))
            .collect::<Result<_>>()?;
        let mut cluster = Self { members: Vec::new() };
        for (at, &[client, peer, admin]) in addresses.iter().enumerate() {
            let name = format!("bench-{at}");
            let (data, log) = (folder.join(&name), folder.join(format!("{name}.log")));
            let args = match system {
                System::Etcd => etcd_args(&name, &data, client, peer, &addresses),
                System::Althing => althing_args(&name, &data, client, peer, admin),
            };
            let (program, disk) = match system {
                System::Etcd => (&programs.etcd, None),
                System::Althing => (&programs.althing, programs.disk.as_ref()),
            };
            let process = spawn(program, &args, disk, &log)?;
            cluster.members.push(Member {
                client,
                peer,
                admin,
                log,
                process,
            });
        }
        match system {
            System::Etcd => {}
            System::Althing => cluster.form()?,
        }
        wait_until(&format!("{} serves", system.name()), READY_LIMIT, || {
            let endpoints = format!("--endpoints={}", cluster.endpoints().join(","));
            run(Command::new(&programs.etcdctl).args([&endpoints, "endpoint", "health"]))
                .map(drop)
                .map_err(|error| error.to_string())
        })
        .map_err(|error| cluster.blame(error))?;
        Ok(cluster)
    }

    /// Where clients ask.
    pub(super) fn endpoints(&self) -> Vec<String> {
        self.members.iter().map(|member| member.client.to_string()).collect()
    }

    /// Where clients ask for a keyspace that has this port.
    pub(super) fn endpoints_at(&self, port: u16) -> Vec<String> {
        let members = self.members.iter();
        members.map(|member| format!("{}:{port}", member.client.ip())).collect()
    }

    /// The members' processes.
    pub(super) fn pids(&self) -> Vec<u32> {
        self.members.iter().map(|member| member.process.id()).collect()
    }

    /// What each member has used since it started.
    pub(super) fn usage(&self) -> Result<Vec<Usage>> {
        self.members
            .iter()
            .map(|member| usage::of(member.process.id()))
            .collect()
    }

    /// Makes members of ours a cluster: the first is born, the others learn, then vote.
    fn form(&self) -> Result<()> {
        let statuses = self
            .members
            .iter()
            .map(|member| {
                wait_until("a member answers", READY_LIMIT, || {
                    call("GET", member.admin, "/v1/status", "")
                })
            })
            .map(|answer| parse(&answer?))
            .collect::<Result<Vec<Value>>>()
            .map_err(|error| self.blame(error))?;
        let first = self.members[0].admin;
        let ask = |path: &str, body: &Value| {
            wait_until(path, READY_LIMIT, || call("POST", first, path, &body.to_string()))
                .map_err(|error| self.blame(error))
        };
        ask("/v1/bootstrap", &json!({"clusterId": CLUSTER}))?;
        for (member, status) in self.members.iter().zip(&statuses).skip(1) {
            let id = status["memberId"].as_str().unwrap_or_default();
            ask(
                "/v1/members",
                &json!({
                    "id": id, "name": status["name"], "peerAddress": member.peer.to_string(),
                    "clientUrls": [format!("http://{}", member.client)],
                }),
            )?;
            // Refused until the learner has caught up.
            ask(&format!("/v1/members/{id}/promote"), &json!({}))?;
        }
        Ok(())
    }

    /// Has the default keyspace of ours cut into so many shards, and waits until it is and nothing is done to it any more.
    pub(super) fn cut(&self, shards: u32) -> Result<()> {
        if shards == 1 {
            return Ok(());
        }
        let wanted = json!({"shards": shards, "partitioning": {"range": {"splitKeys": split_keys(shards)}}});
        self.declare("default", &wanted, READY_LIMIT, |_| {})
    }

    /// Asks for a keyspace of ours, and waits until it has the shards that `wanted` names and nothing is done any more. `progress` is told
    /// how many there are.
    pub(super) fn declare(
        &self,
        keyspace: &str,
        wanted: &Value,
        limit: Duration,
        progress: impl Fn(u64),
    ) -> Result<()> {
        self.mapped()?;
        let path = format!("/v1/keyspaces/{keyspace}");
        let taken = wait_until("the leader takes the layout", READY_LIMIT, || {
            let asked = self
                .members
                .iter()
                .map(|member| call("PUT", member.admin, &path, &wanted.to_string()));
            asked
                .reduce(|one, other| one.or(other))
                .unwrap_or_else(|| Err("there is no member".to_owned()))
        });
        taken.map_err(|error| self.blame(error))?;
        let shards = wanted["shards"].as_u64();
        let cut = wait_until("the keyspace has its shards", limit, || {
            let layout = self.layout()?;
            let mut keyspaces = layout["keyspaces"].as_array().into_iter().flatten();
            let keyspace = keyspaces
                .find(|other| other["name"] == keyspace)
                .unwrap_or(&Value::Null);
            let current = keyspace["currentShards"].as_u64();
            progress(current.unwrap_or_default());
            let idle = layout["operations"].as_array().is_some_and(Vec::is_empty);
            if current == shards && idle {
                Ok(())
            } else {
                Err(format!(
                    "{current:?} shards, {}; under way: {}",
                    keyspace["message"], layout["operations"]
                ))
            }
        });
        cut.map_err(|error| self.blame(error))
    }

    /// Waits until there is a shard map.
    fn mapped(&self) -> Result<()> {
        let mapped = wait_until(
            "there is a shard map",
            READY_LIMIT,
            || match self.layout()?["version"].as_u64() {
                Some(version) if version > 0 => Ok(()),
                version => Err(format!("version {version:?}")),
            },
        );
        mapped.map_err(|error| self.blame(error))
    }

    /// The shard map with what the first member sees of it.
    fn layout(&self) -> std::result::Result<Value, String> {
        let answer = call("GET", self.members[0].admin, "/v1/layout", "")?;
        serde_json::from_str(&answer).map_err(|error| error.to_string())
    }

    /// The groups that hold the default keyspace's keys, by their numbers.
    pub(super) fn data_shards(&self) -> Result<Vec<String>> {
        let layout = self.layout().map_err(|what| Error::refused(what, "run it again"))?;
        let shards = layout["keyspaces"][0]["shards"].as_array();
        Ok(shards
            .into_iter()
            .flatten()
            .map(|shard| shard["id"].to_string())
            .collect())
    }

    /// Has the default keyspace's shards of ours read in a mode, and waits until their leaders do.
    pub(super) fn read_by(&self, mode: &str) -> Result<()> {
        self.mapped()?;
        for shard in self.data_shards()? {
            let path = format!("/v1/shards/{shard}/reads");
            let done = wait_until(&format!("shard {shard} is read by {mode}"), READY_LIMIT, || {
                let members = self.members.iter();
                let leader = members
                    .map(|member| member.admin)
                    .find_map(|admin| Some((admin, shard_at_leader(admin, &shard)?)));
                let (admin, seen) = leader.ok_or("it has no leader")?;
                let reads = &seen["reads"];
                if reads["mode"] != mode {
                    call("PUT", admin, &path, &json!({"mode": mode}).to_string())?;
                    return Err(format!("its reads are {reads}"));
                }
                // One that sleeps holds no lease, and takes it when the first request wakes it.
                if mode == "ReadIndex" || reads["local"] == true || seen["hibernating"] == true {
                    Ok(())
                } else {
                    Err(format!("its reads are {reads}"))
                }
            });
            done.map_err(|error| self.blame(error))?;
        }
        Ok(())
    }

    /// What each member of ours has counted.
    pub(super) fn scrape(&self) -> Result<Vec<Scrape>> {
        let scrape = |member: &Member| call("GET", member.admin, "/metrics", "").map(|text| Scrape::parse(&text));
        let all: std::result::Result<Vec<_>, String> = self.members.iter().map(scrape).collect();
        all.map_err(|what| self.blame(Error::refused(what, "run it again")))
    }

    /// Adds the ends of the members' logs to an error.
    fn blame(&self, error: Error) -> Error {
        let logs: Vec<String> = self
            .members
            .iter()
            .filter_map(|member| fs::read_to_string(&member.log).ok())
            .map(|log| tail(&log, LOG_TAIL).to_owned())
            .collect();
        Error::refused(
            format!("{error}\n{}", logs.join("\n---\n")),
            "read the members' logs above",
        )
    }
}

/// What a member says of a shard that it leads.
fn shard_at_leader(admin: SocketAddr, shard: &str) -> Option<Value> {
    let answer = call("GET", admin, "/v1/shards", "").ok()?;
    let all: Value = serde_json::from_str(&answer).ok()?;
    let mut shards = all["shards"].as_array()?.iter();
    let seen = shards.find(|seen| seen["id"].as_u64().is_some_and(|id| shard.parse() == Ok(id)))?;
    (seen["role"] == "Leader").then(|| seen.clone())
}

fn parse(answer: &str) -> Result<Value> {
    serde_json::from_str(answer).map_err(|source| Error::Json {
        what: "a member's status".to_owned(),
        source,
    })
}

fn spawn(program: &Path, args: &[String], disk: Option<&SlowDisk>, log: &Path) -> Result<Child> {
    let open = || {
        OpenOptions::new()
            .create(true)
            .append(true)
            .open(log)
            .map_err(Error::io("open", log))
    };
    // Ends with this process, also if that is killed.
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "KILL"]).arg(program).args(args);
    if let Some(disk) = disk {
        disk.apply(&mut command);
    }
    command.stdin(Stdio::null()).stdout(open()?).stderr(open()?);
    command.spawn().map_err(|source| Error::Start {
        program: "setpriv".to_owned(),
        source,
        hint: "install util-linux",
    })
}

/// etcd with its own defaults; fsync is one of them.
fn etcd_args(name: &str, data: &Path, client: SocketAddr, peer: SocketAddr, all: &[[SocketAddr; 3]]) -> Vec<String> {
    let cluster: Vec<String> = all
        .iter()
        .enumerate()
        .map(|(at, [_, peer, _])| format!("bench-{at}=http://{peer}"))
        .collect();
    vec![
        format!("--name={name}"),
        format!("--data-dir={}", data.display()),
        format!("--listen-client-urls=http://{client}"),
        format!("--advertise-client-urls=http://{client}"),
        format!("--listen-peer-urls=http://{peer}"),
        format!("--initial-advertise-peer-urls=http://{peer}"),
        format!("--initial-cluster={}", cluster.join(",")),
        "--log-level=warn".to_owned(),
    ]
}

/// Ours with its own defaults.
fn althing_args(name: &str, data: &Path, client: SocketAddr, peer: SocketAddr, admin: SocketAddr) -> Vec<String> {
    vec![
        "run".to_owned(),
        format!("--name={name}"),
        format!("--data-dir={}", data.display()),
        format!("--client-addr={client}"),
        format!("--peer-addr={peer}"),
        format!("--admin-addr={admin}"),
        "--log-filter=info".to_owned(),
    ]
}

/// Where a member lives: all of 127.0.0.0/8 is loopback, and with an address for each of them the same port can be a keyspace's at all.
fn host(member: usize) -> Ipv4Addr {
    Ipv4Addr::new(127, 0, 0, 1 + member as u8)
}

/// A port of the first member that was free a moment ago, for a keyspace: others' ports are drawn from as many thousands.
pub(super) fn free_port() -> Result<u16> {
    Ok(free_address(host(0))?.port())
}

/// A port that was free a moment ago.
fn free_address(ip: Ipv4Addr) -> Result<SocketAddr> {
    TcpListener::bind((ip, 0))
        .and_then(|listener| listener.local_addr())
        .map_err(Error::io("bind", ip.to_string()))
}
