//! Election of the one replica that acts, by a Lease.
//!
//! No two machines' clocks are compared: a candidate takes over only after it has seen the same holder and the same renewal
//! for a whole lease duration on its own monotonic clock, and the holder gives up (the process ends) when it has not
//! renewed for less than that on its own. Writes carry the resource version that was read. What this cannot exclude (a
//! holder that is frozen between its check and its act) is covered by the guards of each step: expected configuration
//! index, uid and resource version.

use std::time::{Duration, Instant};

use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta};
use k8s_openapi::jiff::Timestamp;
use kube::api::PostParams;
use kube::{Api, Client};

use crate::error::{is_conflict, is_not_found};
use crate::settings::Settings;

/// After this long without a renewal, others may take over.
const DURATION: Duration = Duration::from_secs(15);
/// After this long without a renewal, the holder gives up: well before others may take over.
const DEADLINE: Duration = Duration::from_secs(10);
/// How often the holder renews and candidates look.
const PERIOD: Duration = Duration::from_secs(2);

/// What a candidate knows of the lease: who held it when it last changed, and when that was seen.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Seen {
    holder: String,
    renewed: Option<String>,
    since: Instant,
}

/// What to do about a lease.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Turn {
    /// Nobody holds it, or its holder is silent.
    Acquire,
    /// It is ours.
    Renew,
    /// Somebody else's.
    Yield,
}

/// Decides. Pure.
fn decide(me: &str, seen: &Seen, now: Instant) -> Turn {
    if seen.holder == me {
        Turn::Renew
    } else if seen.holder.is_empty() || now.duration_since(seen.since) >= DURATION {
        Turn::Acquire
    } else {
        Turn::Yield
    }
}

/// Takes what was read just now into account: a lease that has changed is fresh. Pure.
fn look(seen: Option<Seen>, spec: Option<&LeaseSpec>, now: Instant) -> Seen {
    let holder = spec.and_then(|spec| spec.holder_identity.clone()).unwrap_or_default();
    let renewed = spec
        .and_then(|spec| spec.renew_time.as_ref())
        .map(|time| time.0.to_string());
    match seen {
        Some(seen) if seen.holder == holder && seen.renewed == renewed => seen,
        Some(_) | None => Seen {
            holder,
            renewed,
            since: now,
        },
    }
}

/// A candidate or the holder.
pub(crate) struct Election {
    leases: Api<Lease>,
    name: String,
    me: String,
    seen: Option<Seen>,
    renewed: Instant,
}

impl Election {
    /// A candidate.
    pub(crate) fn new(client: Client, settings: &Settings) -> Self {
        Self {
            leases: Api::namespaced(client, &settings.pod_namespace),
            name: settings.lease_name.clone(),
            me: settings.pod_name.clone(),
            seen: None,
            renewed: Instant::now(),
        }
    }

    /// Returns once this replica holds the lease.
    pub(crate) async fn acquired(&mut self) {
        loop {
            match self.turn().await {
                Ok(true) => return,
                Ok(false) => {}
                Err(error) => {
                    tracing::warn!(%error, lease = self.name, "the lease cannot be read or written")
                }
            }
            tokio::time::sleep(PERIOD).await;
        }
    }

    /// Renews until the lease is lost, and then returns why.
    pub(crate) async fn lost(&mut self) -> String {
        loop {
            tokio::time::sleep(PERIOD).await;
            let left = DEADLINE.saturating_sub(self.renewed.elapsed());
            match tokio::time::timeout(left, self.turn()).await {
                Ok(Ok(true)) => {}
                // A write of ours crossed another; the next look tells who holds it.
                Ok(Ok(false)) if self.seen.as_ref().is_some_and(|seen| seen.holder == self.me) => {}
                Ok(Ok(false)) => return "another replica has taken the lease over".into(),
                Ok(Err(error)) => {
                    tracing::warn!(%error, lease = self.name, "the lease could not be renewed");
                    if self.renewed.elapsed() >= DEADLINE {
                        return format!("the lease could not be renewed for {} s", DEADLINE.as_secs());
                    }
                }
                Err(_) => {
                    return format!("the lease could not be renewed for {} s", DEADLINE.as_secs());
                }
            }
        }
    }

    /// Gives the lease back, so that the next replica need not wait.
    pub(crate) async fn release(&mut self) {
        if let Ok(Some(mut lease)) = self.leases.get_opt(&self.name).await
            && lease.spec.as_ref().and_then(|spec| spec.holder_identity.as_deref()) == Some(&self.me)
        {
            lease.spec.get_or_insert_default().holder_identity = Some(String::new());
            if let Err(error) = self.leases.replace(&self.name, &PostParams::default(), &lease).await {
                tracing::warn!(%error, "the lease could not be given back; it runs out by itself");
            }
        }
    }

    /// Looks and acts once; true if this replica holds the lease.
    async fn turn(&mut self) -> Result<bool, kube::Error> {
        let found = match self.leases.get(&self.name).await {
            Ok(lease) => Some(lease),
            Err(error) if is_not_found(&error) => None,
            Err(error) => return Err(error),
        };
        let now = Instant::now();
        let seen = look(
            self.seen.take(),
            found.as_ref().and_then(|lease| lease.spec.as_ref()),
            now,
        );
        let turn = decide(&self.me, &seen, now);
        self.seen = Some(seen);
        match turn {
            Turn::Yield => Ok(false),
            Turn::Acquire | Turn::Renew => self.write(found, now).await,
        }
    }

    async fn write(&mut self, found: Option<Lease>, now: Instant) -> Result<bool, kube::Error> {
        let outcome = match found {
            None => {
                let lease = Lease {
                    metadata: ObjectMeta {
                        name: Some(self.name.clone()),
                        ..ObjectMeta::default()
                    },
                    spec: Some(self.claim(None)),
                };
                self.leases.create(&PostParams::default(), &lease).await
            }
            Some(mut lease) => {
                let claim = self.claim(lease.spec.take());
                lease.spec = Some(claim);
                self.leases.replace(&self.name, &PostParams::default(), &lease).await
            }
        };
        match outcome {
            Ok(_) => {
                self.renewed = now;
                Ok(true)
            }
            // Somebody else wrote at the same time; the next look tells who.
            Err(error) if is_conflict(&error) => Ok(false),
            Err(error) => Err(error),
        }
    }

    fn claim(&self, before: Option<LeaseSpec>) -> LeaseSpec {
        let now = MicroTime(Timestamp::now());
        let before = before.unwrap_or_default();
        let kept = before.holder_identity.as_deref() == Some(&self.me);
        LeaseSpec {
            holder_identity: Some(self.me.clone()),
            lease_duration_seconds: i32::try_from(DURATION.as_secs()).ok(),
            acquire_time: if kept { before.acquire_time } else { Some(now.clone()) },
            renew_time: Some(now),
            lease_transitions: Some(before.lease_transitions.unwrap_or(0).saturating_add(i32::from(!kept))),
            ..LeaseSpec::default()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(holder: &str, second: i64) -> LeaseSpec {
        LeaseSpec {
            holder_identity: Some(holder.into()),
            renew_time: Some(MicroTime(Timestamp::from_second(second).expect("a time"))),
            ..LeaseSpec::default()
        }
    }

    #[test]
    fn a_silent_holder_is_replaced_after_a_whole_duration_on_our_own_clock() {
        let start = Instant::now();
        let seen = look(None, Some(&spec("a", 1)), start);
        assert_eq!(
            decide("b", &seen, start + DURATION - Duration::from_millis(1)),
            Turn::Yield
        );
        assert_eq!(decide("b", &seen, start + DURATION), Turn::Acquire);
    }

    #[test]
    fn a_holder_that_renews_keeps_it_whatever_its_clock_says() {
        let start = Instant::now();
        let seen = look(None, Some(&spec("a", 5)), start);
        // Its clock runs backwards; it still renewed.
        let seen = look(Some(seen), Some(&spec("a", 4)), start + DURATION);
        assert_eq!(decide("b", &seen, start + DURATION), Turn::Yield);
    }

    #[test]
    fn a_lease_that_was_given_back_is_free_at_once() {
        let now = Instant::now();
        assert_eq!(decide("b", &look(None, Some(&spec("", 1)), now), now), Turn::Acquire);
        assert_eq!(decide("b", &look(None, None, now), now), Turn::Acquire);
        assert_eq!(decide("a", &look(None, Some(&spec("a", 1)), now), now), Turn::Renew);
    }

    #[test]
    fn the_holder_gives_up_before_others_may_take_over() {
        assert!(DEADLINE + PERIOD < DURATION);
    }
}
