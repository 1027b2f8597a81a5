//! One sequential client of etcd's KV service.

use std::time::Duration;

use althing_api::pb::etcdserverpb::kv_client::KvClient;
use althing_api::pb::etcdserverpb::{PutRequest, RangeRequest};
use althing_sim::{ClientId, Op, Outcome, Reply, Seen};
use bytes::Bytes;
use tokio::sync::watch;
use tokio::time::{MissedTickBehavior, interval, timeout};
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Status};

use super::{Log, OPERATIONS_MAX, Plan, is_read};

pub(super) struct Client {
    id: ClientId,
    keys: Vec<String>,
    period: Duration,
    connection: Connection,
    log: Log,
}

impl Client {
    pub(super) fn new(id: ClientId, plan: &Plan, keys: Vec<String>, log: Log) -> Self {
        let connection = Connection::new(plan.endpoints.clone(), id.0, plan.request_timeout);
        Self {
            id,
            keys,
            period: plan.period,
            connection,
            log,
        }
    }

    pub(super) async fn run(mut self, stopped: watch::Receiver<bool>) {
        let mut ticks = interval(self.period);
        // After an outage the rate goes on; what was missed is not made up for in a burst.
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        for number in 0..OPERATIONS_MAX {
            ticks.tick().await;
            if *stopped.borrow() {
                break;
            }
            // Connecting is no operation: a request that never left has no place in the history.
            if self.connection.connect().await.is_ok() {
                self.operate(number).await;
            }
        }
    }

    async fn operate(&mut self, number: u32) {
        // Clients walk the keys from different starts, so that they meet at every key.
        let index = number.wrapping_add(self.id.0) as usize % self.keys.len();
        let key = self.keys[index].clone();
        if is_read(self.id, number) {
            let call = self
                .log
                .record(|log, now| log.invoke(self.id, Op::Get { key: key.clone() }, now));
            let outcome = match self.connection.get(&key).await {
                Ok((revision, seen)) => Outcome::Ok {
                    reply: Reply::Get { revision, seen },
                },
                // A read that failed changed nothing.
                Err(status) => Outcome::Failed {
                    error: status.to_string(),
                },
            };
            self.log.record(|log, now| log.complete(call, outcome, now));
        } else {
            let value = format!("{}-{number}", self.id);
            let op = Op::Put {
                key: key.clone(),
                value: value.clone(),
            };
            let call = self.log.record(|log, now| log.invoke(self.id, op, now));
            let outcome = match self.connection.put(&key, &value).await {
                Ok(revision) => Outcome::Ok {
                    reply: Reply::Put { revision },
                },
                Err(status) => outcome_of_failed_write(&status),
            };
            self.log.record(|log, now| log.complete(call, outcome, now));
        }
    }
}

/// Whatever does not certainly mean "never proposed" stays unknown.
fn outcome_of_failed_write(status: &Status) -> Outcome {
    let error = status.to_string();
    let refused_at_the_door = matches!(
        status.code(),
        Code::InvalidArgument | Code::ResourceExhausted | Code::Unimplemented | Code::PermissionDenied
    );
    if refused_at_the_door {
        Outcome::Failed { error }
    } else {
        Outcome::Unknown { error }
    }
}

/// A connection to one of several endpoints; a failed request closes it, the next one tries the next endpoint.
pub(super) struct Connection {
    endpoints: Vec<String>,
    next: usize,
    limit: Duration,
    client: Option<KvClient<Channel>>,
}

impl Connection {
    pub(super) fn new(endpoints: Vec<String>, first: u32, limit: Duration) -> Self {
        Self {
            endpoints,
            next: first as usize,
            limit,
            client: None,
        }
    }

    pub(super) async fn connect(&mut self) -> Result<&mut KvClient<Channel>, Status> {
        if self.client.is_none() {
            let url = self.endpoints[self.next % self.endpoints.len()].clone();
            self.next += 1;
            let endpoint = Endpoint::from_shared(url).map_err(|error| Status::invalid_argument(error.to_string()))?;
            let endpoint = endpoint.connect_timeout(self.limit);
            let channel = endpoint
                .connect()
                .await
                .map_err(|error| Status::unavailable(error.to_string()))?;
            self.client = Some(KvClient::new(channel));
        }
        Ok(self.client.as_mut().expect("invariant: connected above"))
    }

    pub(super) async fn put(&mut self, key: &str, value: &str) -> Result<i64, Status> {
        let request = PutRequest {
            key: Bytes::copy_from_slice(key.as_bytes()),
            value: Bytes::copy_from_slice(value.as_bytes()),
            ..PutRequest::default()
        };
        let limit = self.limit;
        let client = self.connect().await?;
        let answer = timeout(limit, client.put(request))
            .await
            .unwrap_or_else(|_| Err(no_answer(limit)));
        let answer = self.settle(answer)?;
        revision(answer.header.map(|header| header.revision))
    }

    /// A linearizable read: the header's revision, and the key if it exists.
    pub(super) async fn get(&mut self, key: &str) -> Result<(i64, Option<Seen>), Status> {
        let request = RangeRequest {
            key: Bytes::copy_from_slice(key.as_bytes()),
            ..RangeRequest::default()
        };
        let limit = self.limit;
        let client = self.connect().await?;
        let answer = timeout(limit, client.range(request))
            .await
            .unwrap_or_else(|_| Err(no_answer(limit)));
        let answer = self.settle(answer)?;
        let seen = answer.kvs.first().map(|kv| Seen {
            value: String::from_utf8_lossy(&kv.value).into_owned(),
            mod_revision: kv.mod_revision,
            version: kv.version,
        });
        Ok((revision(answer.header.map(|header| header.revision))?, seen))
    }

    fn settle<T>(&mut self, answer: Result<tonic::Response<T>, Status>) -> Result<T, Status> {
        if answer.is_err() {
            self.client = None;
        }
        answer.map(tonic::Response::into_inner)
    }
}

fn no_answer(limit: Duration) -> Status {
    Status::deadline_exceeded(format!("no answer in {} ms", limit.as_millis()))
}

/// etcd puts a header on every answer.
fn revision(revision: Option<i64>) -> Result<i64, Status> {
    revision.ok_or_else(|| Status::internal("the answer has no header"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_write_is_only_called_failed_where_it_cannot_have_been_proposed() {
        for (code, certain) in [
            (Code::InvalidArgument, true),
            (Code::ResourceExhausted, true),
            (Code::Unavailable, false),
            (Code::DeadlineExceeded, false),
            (Code::Cancelled, false),
            (Code::Unknown, false),
            (Code::Internal, false),
        ] {
            let outcome = outcome_of_failed_write(&Status::new(code, "x"));
            assert_eq!(matches!(outcome, Outcome::Failed { .. }), certain, "{code:?}");
        }
    }
}
