//! Five members at their sites, and what they say of themselves.

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use serde_json::Value;

use super::super::http::call;
use super::measure::{Counters, Observed, View};
use super::plan::Mode;
use super::sites::{self, SITES};
use crate::chaos::cluster::Cluster;
use crate::chaos::fault::MemberIndex;
use crate::chaos::plan::Abilities;
use crate::chaos::proxy;
use crate::command::wait_until;
use crate::error::{Error, Result};

/// How long members may take to read in another way: some leases and elections.
const SETTLE_LIMIT: Duration = Duration::from_secs(30);
/// How often a member is looked at while rosters change: a fraction of the shortest way between two sites.
const LOOK: Duration = Duration::from_millis(4);

/// The members. The first one leads.
pub(super) struct Bed {
    cluster: Cluster,
    /// Their member ids.
    ids: Vec<String>,
}

impl Bed {
    /// Starts them side by side, and moves them apart when they are a cluster.
    pub(super) fn start(program: &Path, folder: &Path) -> Result<Self> {
        let cluster = Cluster::start(program, &[], SITES, folder, Abilities::default())?;
        for from in 0..SITES {
            for to in (0..SITES).filter(|to| *to != from) {
                let late = proxy::Path::Slow(sites::delay(from, to));
                cluster.network.set(MemberIndex(from), MemberIndex(to), late);
            }
        }
        let mut bed = Self {
            cluster,
            ids: Vec::new(),
        };
        for site in 0..SITES {
            let status = bed.call(site, "GET", "/v1/status", "").map_err(|what| refused(&what))?;
            let status: Value = serde_json::from_str(&status).map_err(|source| Error::Json {
                what: "a member's status".to_owned(),
                source,
            })?;
            bed.ids.push(status["memberId"].as_str().unwrap_or_default().to_owned());
        }
        Ok(bed)
    }

    /// Where clients of each site ask.
    pub(super) fn endpoints(&self) -> Vec<String> {
        self.cluster.members.iter().map(|member| member.client_url()).collect()
    }

    /// Member ids of these sites.
    pub(super) fn ids(&self, sites: &[usize]) -> Vec<String> {
        sites.iter().map(|site| self.ids[*site].clone()).collect()
    }

    fn call(&self, site: usize, method: &str, path: &str, body: &str) -> std::result::Result<String, String> {
        call(method, self.cluster.members[site].admin_addr(), path, body)
    }

    /// What a member says of its reads.
    pub(super) fn view(&self, site: usize) -> std::result::Result<View, String> {
        View::parse(&self.call(site, "GET", "/v1/shards", "")?)
    }

    /// What all of them have counted.
    pub(super) fn counters(&self) -> Result<Counters> {
        let texts = (0..SITES).map(|site| self.call(site, "GET", "/metrics", ""));
        let texts = texts.collect::<std::result::Result<Vec<_>, _>>();
        let texts = texts.map_err(|what| refused(&what))?;
        let sum = |sum: Counters, text: &String| sum.plus(Counters::parse(text));
        Ok(texts.iter().fold(Counters::default(), sum))
    }

    /// Asks the leader for another way to read. What it answers does not matter: what members do later does.
    pub(super) fn ask(&self, request: &Value) {
        drop(self.call(0, "PUT", "/v1/shards/1/reads", &request.to_string()));
    }

    /// Waits until the first member leads, all know of the mode that was asked for after `spec`, and its holders hold leases.
    pub(super) fn settled(&self, mode: Mode, spec: u64) -> Result<()> {
        let holders = mode.holders();
        wait_until(&format!("members read by {}", mode.name()), SETTLE_LIMIT, || {
            for site in 0..SITES {
                let view = self.view(site)?;
                let name = sites::NAMES[site];
                if view.leads != (site == 0) {
                    return Err(format!("{name} leads, or {} does not", sites::NAMES[0]));
                }
                if view.mode != mode.wire() || view.spec <= spec {
                    return Err(format!(
                        "{name} reads by {}, as was asked for at {}",
                        view.mode, view.spec
                    ));
                }
                if holders.contains(&site) && !view.local {
                    return Err(format!("{name} has no lease"));
                }
            }
            Ok(())
        })
    }

    /// Asks for a mode and waits until all have taken it up.
    pub(super) fn switch(&self, mode: Mode) -> Result<()> {
        let before = self.view(0).map_err(|what| refused(&what))?;
        self.ask(&mode.request());
        self.settled(mode, before.spec)
    }

    /// Fails if another member has taken the lead: then distances are others than those that figures are told with.
    pub(super) fn still_led(&self) -> Result<()> {
        match self.view(0) {
            Ok(view) if view.leads => Ok(()),
            Ok(_) | Err(_) => Err(Error::refused(
                format!("{} does not lead any more", sites::NAMES[0]),
                "run it again while the machine does nothing else",
            )),
        }
    }

    /// kill -9.
    pub(super) fn kill(&mut self, site: usize) -> Result<()> {
        self.cluster.members[site].kill()
    }

    /// Starts it again.
    pub(super) fn restart(&mut self, site: usize) -> Result<()> {
        self.cluster.start_member(MemberIndex(site))
    }

    /// Watches all members from `act` until `until` holds; says what each said, and since when.
    pub(super) fn watch(
        &self,
        act: impl FnOnce(),
        until: impl Fn() -> std::result::Result<(), String>,
    ) -> Result<Vec<Observed>> {
        let (begun, over) = (Instant::now(), AtomicBool::new(false));
        std::thread::scope(|scope| {
            let watch = |site| {
                let (bed, over) = (self, &over);
                move || {
                    let mut seen = Observed::new();
                    while !over.load(Ordering::Relaxed) {
                        if let Ok(view) = bed.view(site)
                            && seen.last().is_none_or(|(_, last)| *last != view)
                        {
                            seen.push((begun.elapsed(), view));
                        }
                        std::thread::sleep(LOOK);
                    }
                    seen
                }
            };
            let watchers: Vec<_> = (0..SITES).map(|site| scope.spawn(watch(site))).collect();
            act();
            let settled = wait_until("rosters have changed", SETTLE_LIMIT, &until);
            over.store(true, Ordering::Relaxed);
            let seen = watchers.into_iter().map(|watcher| {
                let joined = watcher.join();
                joined.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
            });
            let seen: Vec<Observed> = seen.collect();
            settled.map(|()| seen)
        })
    }
}

fn refused(what: &str) -> Error {
    Error::refused(what, "see the members' logs")
}
