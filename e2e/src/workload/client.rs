//! One sequential client of etcd's KV service.

use std::collections::BTreeMap;
use std::time::Duration;

use althing_api::pb::etcdserverpb::compare::{CompareResult, CompareTarget, TargetUnion};
use althing_api::pb::etcdserverpb::kv_client::KvClient;
use althing_api::pb::etcdserverpb::{
    Compare, DeleteRangeRequest, PutRequest, RangeRequest, RangeResponse, RequestOp, ResponseHeader, TxnRequest,
    request_op, response_op,
};
use althing_api::pb::mvccpb::KeyValue;
use althing_sim::history::Expect;
use althing_sim::{CallId, ClientId, Op, Outcome, Reply, Seen};
use bytes::Bytes;
use tokio::sync::watch;
use tokio::time::{Instant, MissedTickBehavior, interval_at, timeout};
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Status};

use super::operation::{self, Kind};
use super::{Attach, Go, Log, Mix, OPERATIONS_MAX, Orders, Plan, Reads};

/// What values are filled up with; no value that clients make ends with it.
const FILLER: char = '.';

pub(super) struct Client {
    id: ClientId,
    plan: Plan,
    /// The run's name, which all of its keys have.
    run: String,
    connection: Connection,
    log: Log,
    /// The mod revision of each key as this client saw it last.
    revisions: BTreeMap<String, i64>,
}

impl Client {
    pub(super) fn new(id: ClientId, plan: &Plan, run: String, log: Log) -> Self {
        Self {
            id,
            plan: plan.clone(),
            run,
            connection: Connection::new(plan, id),
            log,
            revisions: BTreeMap::new(),
        }
    }

    pub(super) async fn run(mut self, told: watch::Receiver<Orders>) {
        // Evenly over a period: requests that all come at one moment wait for each other and not for members.
        let first = self.plan.period * self.id.0 / self.plan.clients.max(1);
        let mut ticks = interval_at(Instant::now() + first, self.plan.period);
        // After an outage the rate goes on; what was missed is not made up for in a burst.
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        for number in 0..OPERATIONS_MAX {
            ticks.tick().await;
            let Orders { go, mix } = *told.borrow();
            if go != Go::On {
                break;
            }
            let Some(kind) = operation::kind(mix, &self.plan, self.id, number) else {
                continue;
            };
            // Connecting is no operation: a request that never left has no place in the history.
            if self.connection.connect().await.is_ok() {
                match kind {
                    Kind::Put | Kind::Get | Kind::Delete | Kind::Swap => self.operate(mix, kind, number).await,
                    Kind::SwapTwo => self.swap_two(number).await,
                    Kind::Range => self.range(number).await,
                }
            }
        }
    }

    async fn operate(&mut self, mix: Mix, kind: Kind, number: u32) {
        let elapsed = self.log.begun.elapsed();
        let key = operation::key(mix, &self.plan, &self.run, self.id, number, elapsed);
        let value = format!("{}-{number}", self.id);
        let op = match kind {
            Kind::Get => Op::Get { key },
            Kind::Put => Op::Put { key, value },
            Kind::Delete => Op::Delete { key },
            Kind::Swap => self.swap(key, value),
            Kind::SwapTwo | Kind::Range => unreachable!("invariant: they are not about a single key"),
        };
        let call = self.log.record(|log, now| log.invoke(self.id, op.clone(), now));
        let outcome = match self.connection.execute(&op).await {
            Ok(reply) => {
                self.remember(op.key(), &reply);
                Outcome::Ok { reply }
            }
            // A read that failed changed nothing.
            Err(status) if matches!(op, Op::Get { .. }) => Outcome::Failed {
                error: status.to_string(),
            },
            Err(status) => outcome_of_failed_write(&status),
        };
        self.log.record(|log, now| log.complete(call, outcome, now));
    }

    fn swap(&self, key: String, value: String) -> Op {
        let expect = match self.revisions.get(&key) {
            Some(revision) => Expect::ModRevision(*revision),
            None => Expect::Absent,
        };
        Op::CompareAndSwap { key, expect, value }
    }

    /// One transaction over two keys: both are written, or both are read.
    async fn swap_two(&mut self, number: u32) {
        let elapsed = self.log.begun.elapsed();
        let keys = operation::keys(Kind::SwapTwo, &self.plan, &self.run, self.id, number, elapsed);
        let value = format!("{}-{number}", self.id);
        let ops: Vec<Op> = keys.iter().map(|key| self.swap(key.clone(), value.clone())).collect();
        let calls = self.invoke(&ops);
        let answer = self.connection.swap_all(&ops).await;
        match answer {
            Ok(Swapping::Done { revision }) => {
                let reply = Reply::Swapped { revision };
                keys.iter().for_each(|key| self.remember(key, &reply));
                self.complete(&calls, |_| Outcome::Ok { reply: reply.clone() });
            }
            Ok(Swapping::NotDone { revision, seen }) => {
                self.log.record(|log, _| {
                    for (call, key) in calls.iter().zip(&keys) {
                        log.was(*call, Op::Get { key: key.clone() });
                    }
                });
                self.saw(&calls, &keys, revision, &seen);
            }
            Err(status) => self.complete(&calls, |_| outcome_of_failed_write(&status)),
        }
    }

    /// One range over several keys, of which each is read at its revision.
    async fn range(&mut self, number: u32) {
        let elapsed = self.log.begun.elapsed();
        let keys = operation::keys(Kind::Range, &self.plan, &self.run, self.id, number, elapsed);
        let ops: Vec<Op> = keys.iter().map(|key| Op::Get { key: key.clone() }).collect();
        let calls = self.invoke(&ops);
        match self.connection.get_all(&keys).await {
            Ok((revision, seen)) => self.saw(&calls, &keys, revision, &seen),
            Err(status) => self.complete(&calls, |_| Outcome::Failed {
                error: status.to_string(),
            }),
        }
    }

    fn invoke(&self, ops: &[Op]) -> Vec<CallId> {
        let id = self.id;
        self.log
            .record(|log, now| ops.iter().map(|op| log.invoke(id, op.clone(), now)).collect())
    }

    fn complete(&self, calls: &[CallId], outcome: impl Fn(usize) -> Outcome) {
        self.log.record(|log, now| {
            for (at, call) in calls.iter().enumerate() {
                log.complete(*call, outcome(at), now);
            }
        });
    }

    fn saw(&mut self, calls: &[CallId], keys: &[String], revision: i64, seen: &[Option<Seen>]) {
        let reply = |at: usize| Reply::Get {
            revision,
            seen: seen[at].clone(),
        };
        for (at, key) in keys.iter().enumerate() {
            self.remember(key, &reply(at));
        }
        self.complete(calls, |at| Outcome::Ok { reply: reply(at) });
    }

    fn remember(&mut self, key: &str, reply: &Reply) {
        let revision = match reply {
            Reply::Put { revision } | Reply::Swapped { revision } => Some(*revision),
            Reply::Get { seen, .. } | Reply::NotSwapped { seen, .. } => seen.as_ref().map(|seen| seen.mod_revision),
            Reply::Delete { .. } => None,
        };
        match revision {
            Some(revision) => self.revisions.insert(key.to_owned(), revision),
            None => self.revisions.remove(key),
        };
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

/// What became of a transaction over several keys.
enum Swapping {
    /// All were written, at this revision.
    Done { revision: i64 },
    /// None was written; what each was, in the order of the question.
    NotDone { revision: i64, seen: Vec<Option<Seen>> },
}

/// A connection to one of several endpoints. A failed request closes it; whom the next one asks is the plan's choice.
pub(super) struct Connection {
    endpoints: Vec<String>,
    next: usize,
    attach: Attach,
    limit: Duration,
    reads: Reads,
    value_bytes: usize,
    client: Option<KvClient<Channel>>,
}

impl Connection {
    pub(super) fn new(plan: &Plan, id: ClientId) -> Self {
        Self {
            endpoints: plan.endpoints.clone(),
            next: id.0 as usize,
            attach: plan.attach,
            limit: plan.request_timeout,
            reads: plan.reads,
            value_bytes: plan.value_bytes,
            client: None,
        }
    }

    /// For the last look, which judges the others: it asks everybody, and takes nothing old.
    pub(super) fn always_linearizable(self) -> Self {
        Self {
            attach: Attach::FailOver,
            reads: Reads::Linearizable,
            ..self
        }
    }

    pub(super) async fn connect(&mut self) -> Result<KvClient<Channel>, Status> {
        if self.client.is_none() {
            let url = self.endpoints[self.next % self.endpoints.len()].clone();
            match self.attach {
                Attach::FailOver => self.next += 1,
                Attach::Stay => {}
            }
            let endpoint = Endpoint::from_shared(url).map_err(|error| Status::invalid_argument(error.to_string()))?;
            let endpoint = endpoint.connect_timeout(self.limit);
            let channel = endpoint
                .connect()
                .await
                .map_err(|error| Status::unavailable(error.to_string()))?;
            self.client = Some(KvClient::new(channel));
        }
        Ok(self.client.clone().expect("invariant: connected above"))
    }

    /// One request, sent once.
    async fn execute(&mut self, op: &Op) -> Result<Reply, Status> {
        match op {
            Op::Get { key } => {
                let (revision, seen) = self.get(key).await?;
                Ok(Reply::Get { revision, seen })
            }
            Op::Put { key, value } => {
                let request = self.put_of(key, value);
                let mut client = self.connect().await?;
                let answer = self.answered(client.put(request)).await?;
                Ok(Reply::Put {
                    revision: revision(answer.header)?,
                })
            }
            Op::Delete { key } => {
                let request = DeleteRangeRequest {
                    key: bytes_of(key),
                    ..DeleteRangeRequest::default()
                };
                let mut client = self.connect().await?;
                let answer = self.answered(client.delete_range(request)).await?;
                Ok(Reply::Delete {
                    revision: revision(answer.header)?,
                    deleted: answer.deleted > 0,
                })
            }
            Op::CompareAndSwap { key, expect, value } => {
                let request = TxnRequest {
                    compare: vec![compare(key, expect)],
                    success: vec![operation_of(request_op::Request::RequestPut(self.put_of(key, value)))],
                    failure: vec![operation_of(request_op::Request::RequestRange(range_of(
                        key,
                        Reads::Linearizable,
                    )))],
                };
                let mut client = self.connect().await?;
                let answer = self.answered(client.txn(request)).await?;
                let revision = revision(answer.header)?;
                if answer.succeeded {
                    return Ok(Reply::Swapped { revision });
                }
                match answer.responses.into_iter().next().and_then(|answer| answer.response) {
                    Some(response_op::Response::ResponseRange(range)) => Ok(Reply::NotSwapped {
                        revision,
                        seen: seen(&range),
                    }),
                    Some(
                        response_op::Response::ResponsePut(_)
                        | response_op::Response::ResponseDeleteRange(_)
                        | response_op::Response::ResponseTxn(_),
                    )
                    | None => Err(not_of_its_branch()),
                }
            }
        }
    }

    /// One transaction: if all comparisons hold, all are written, else all are read.
    async fn swap_all(&mut self, ops: &[Op]) -> Result<Swapping, Status> {
        let mut request = TxnRequest::default();
        for op in ops {
            let Op::CompareAndSwap { key, expect, value } = op else {
                unreachable!("invariant: it is made of swaps");
            };
            request.compare.push(compare(key, expect));
            let put = request_op::Request::RequestPut(self.put_of(key, value));
            request.success.push(operation_of(put));
            let read = request_op::Request::RequestRange(range_of(key, Reads::Linearizable));
            request.failure.push(operation_of(read));
        }
        let mut client = self.connect().await?;
        let answer = self.answered(client.txn(request)).await?;
        let revision = revision(answer.header)?;
        if answer.succeeded {
            return Ok(Swapping::Done { revision });
        }
        let ranges = answer.responses.into_iter().map(|answer| match answer.response {
            Some(response_op::Response::ResponseRange(range)) => Ok(seen(&range)),
            Some(
                response_op::Response::ResponsePut(_)
                | response_op::Response::ResponseDeleteRange(_)
                | response_op::Response::ResponseTxn(_),
            )
            | None => Err(not_of_its_branch()),
        });
        let seen = ranges.collect::<Result<Vec<_>, _>>()?;
        if seen.len() == ops.len() {
            Ok(Swapping::NotDone { revision, seen })
        } else {
            Err(not_of_its_branch())
        }
    }

    /// The header's revision of a range from the first of these keys to the last one, and what each of them is.
    async fn get_all(&mut self, keys: &[String]) -> Result<(i64, Vec<Option<Seen>>), Status> {
        let (Some(first), Some(last)) = (keys.first(), keys.last()) else {
            return Err(Status::invalid_argument("a range of no keys"));
        };
        let mut end = last.clone();
        end.push('\0');
        let request = RangeRequest {
            range_end: bytes_of(&end),
            ..range_of(first, self.reads)
        };
        let mut client = self.connect().await?;
        let answer = self.answered(client.range(request)).await?;
        let found = |key: &String| answer.kvs.iter().find(|kv| kv.key == key.as_bytes()).map(seen_in);
        let seen = keys.iter().map(found).collect();
        Ok((revision(answer.header)?, seen))
    }

    /// The header's revision, and the key if it exists.
    pub(super) async fn get(&mut self, key: &str) -> Result<(i64, Option<Seen>), Status> {
        let request = range_of(key, self.reads);
        let mut client = self.connect().await?;
        let answer = self.answered(client.range(request)).await?;
        let seen = seen(&answer);
        Ok((revision(answer.header)?, seen))
    }

    /// A failed request closes the connection: what it still carries is nobody's answer any more.
    async fn answered<T>(
        &mut self,
        answer: impl Future<Output = Result<tonic::Response<T>, Status>>,
    ) -> Result<T, Status> {
        let limit = self.limit;
        let answer = timeout(limit, answer).await.unwrap_or_else(|_| Err(no_answer(limit)));
        if answer.is_err() {
            self.client = None;
        }
        answer.map(tonic::Response::into_inner)
    }

    fn put_of(&self, key: &str, value: &str) -> PutRequest {
        let mut value = value.to_owned();
        while value.len() < self.value_bytes {
            value.push(FILLER);
        }
        PutRequest {
            key: bytes_of(key),
            value: value.into(),
            ..PutRequest::default()
        }
    }
}

fn bytes_of(text: &str) -> Bytes {
    Bytes::copy_from_slice(text.as_bytes())
}

fn range_of(key: &str, reads: Reads) -> RangeRequest {
    RangeRequest {
        key: bytes_of(key),
        serializable: match reads {
            Reads::Linearizable => false,
            Reads::Serializable => true,
        },
        ..RangeRequest::default()
    }
}

fn operation_of(request: request_op::Request) -> RequestOp {
    RequestOp { request: Some(request) }
}

fn compare(key: &str, expect: &Expect) -> Compare {
    let (target, with) = match expect {
        Expect::Absent => (CompareTarget::Mod, TargetUnion::ModRevision(0)),
        Expect::ModRevision(revision) => (CompareTarget::Mod, TargetUnion::ModRevision(*revision)),
        Expect::Value(value) => (CompareTarget::Value, TargetUnion::Value(bytes_of(value))),
    };
    Compare {
        result: CompareResult::Equal.into(),
        target: target.into(),
        key: bytes_of(key),
        target_union: Some(with),
        ..Compare::default()
    }
}

fn seen(answer: &RangeResponse) -> Option<Seen> {
    answer.kvs.first().map(seen_in)
}

fn seen_in(kv: &KeyValue) -> Seen {
    Seen {
        value: String::from_utf8_lossy(&kv.value).trim_end_matches(FILLER).to_owned(),
        mod_revision: kv.mod_revision,
        version: kv.version,
    }
}

fn not_of_its_branch() -> Status {
    Status::internal("the answer is not that of the branch that ran")
}

fn no_answer(limit: Duration) -> Status {
    Status::deadline_exceeded(format!("no answer in {} ms", limit.as_millis()))
}

/// etcd puts a header on every answer.
fn revision(header: Option<ResponseHeader>) -> Result<i64, Status> {
    header
        .map(|header| header.revision)
        .ok_or_else(|| Status::internal("the answer has no header"))
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
