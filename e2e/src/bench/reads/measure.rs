//! From what was seen to figures. Pure.

use std::time::Duration;

use althing_sim::{ClientId, Event, History, Op, Outcome, Reply};
use serde_json::Value;

use super::sites::SITES;

/// Some time of a run, in the history's clock.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Window {
    /// From here on.
    pub from: Duration,
    /// Not any more.
    pub to: Duration,
}

impl Window {
    fn holds(self, at_ns: u64) -> bool {
        (self.from..self.to).contains(&Duration::from_nanos(at_ns))
    }

    /// How long it is, in seconds.
    pub fn seconds(self) -> f64 {
        (self.to - self.from).as_secs_f64()
    }
}

/// At which site a client sits: they are dealt out in turns.
pub fn site_of(client: ClientId) -> usize {
    client.0 as usize % SITES
}

/// How long requests took, in milliseconds.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Samples {
    /// Of reads, by site.
    pub reads: [Vec<f64>; SITES],
    /// Of writes, by site.
    pub writes: [Vec<f64>; SITES],
    /// Requests without an answer that counts.
    pub failed: usize,
}

impl Samples {
    /// Those of the requests that began within the window.
    pub fn of(history: &History, window: Window) -> Self {
        let mut samples = Self::default();
        for event in history.events.iter().filter(|event| window.holds(event.invoked_ns)) {
            let site = site_of(event.client);
            let took = (event.returned_ns - event.invoked_ns) as f64 / 1e6;
            match (&event.op, event.reply()) {
                (_, None) => samples.failed += 1,
                (Op::Get { .. }, Some(_)) => samples.reads[site].push(took),
                (Op::Put { .. } | Op::Delete { .. } | Op::CompareAndSwap { .. }, Some(_)) => {
                    samples.writes[site].push(took);
                }
            }
        }
        samples
    }

    /// Adds those of another round.
    pub fn extend(&mut self, other: Self) {
        for (own, more) in self.reads.iter_mut().zip(other.reads) {
            own.extend(more);
        }
        for (own, more) in self.writes.iter_mut().zip(other.writes) {
            own.extend(more);
        }
        self.failed += other.failed;
    }
}

/// When writes were acknowledged, in order.
fn acknowledged(history: &History) -> Vec<Duration> {
    let wrote = |event: &&Event| event.reply().is_some_and(|reply| reply.wrote());
    let moments = history.events.iter().filter(wrote);
    let mut moments: Vec<_> = moments.map(|event| Duration::from_nanos(event.returned_ns)).collect();
    moments.sort_unstable();
    moments
}

/// The largest time between two acknowledged writes of which some lies within the window; the window itself if it has none.
pub fn write_gap(history: &History, window: Window) -> Duration {
    acknowledged(history)
        .windows(2)
        .filter(|pair| pair[0] < window.to && window.from < pair[1])
        .map(|pair| pair[1] - pair[0])
        .max()
        .unwrap_or(window.to - window.from)
}

/// For the judge: reads that began in a time in which revisions are those of keys are shown at the newest revision that anybody had
/// seen before they began, if they said an older one. It is still asked of them that no write of their key up to that revision
/// is missing, and that is all that they owe.
pub fn lifted(history: &History, of_keys: &[Window]) -> History {
    let seen = |event: &Event| Some((event.returned_ns, event.reply()?.revision()));
    let mut answers: Vec<(u64, i64)> = history.events.iter().filter_map(seen).collect();
    answers.sort_unstable();
    let mut answers = answers.into_iter().peekable();
    let mut lifted = history.clone();
    lifted.events.sort_by_key(|event| event.invoked_ns);
    let mut newest = 0;
    for event in &mut lifted.events {
        while let Some((_, revision)) = answers.next_if(|(at, _)| *at < event.invoked_ns) {
            newest = revision.max(newest);
        }
        let owes_its_key_only = of_keys.iter().any(|window| window.holds(event.invoked_ns));
        if let Outcome::Ok {
            reply: Reply::Get { revision, .. },
        } = &mut event.outcome
            && owes_its_key_only
        {
            *revision = newest.max(*revision);
        }
    }
    lifted
}

/// Sums over all members of what they count.
#[derive(Clone, Copy, PartialEq, Debug, Default)]
pub struct Counters {
    /// Messages to peers.
    pub messages: f64,
    /// Bytes to peers.
    pub bytes: f64,
    /// Linearizable reads that were answered without a message.
    pub local: f64,
    /// Of these, held for a write of their keys.
    pub held: f64,
    /// Linearizable reads that needed the leader or a round of it.
    pub by_index: f64,
}

impl Counters {
    /// From the text of one member's metrics. What is not there counts as nothing. Reads are those of the shard that clients read: members
    /// read the map for themselves, from its own group.
    pub fn parse(text: &str) -> Self {
        let sum = |name: &str, with: &str| -> f64 {
            let values = text.lines().filter_map(|line| {
                // Labels follow; anything else is another metric.
                let (labels, value) = line.strip_prefix(name)?.strip_prefix('{')?.split_once('}')?;
                let value = value.split_whitespace().next()?.parse::<f64>().ok();
                value.filter(|_| labels.split(',').any(|label| label.starts_with(with)))
            });
            values.sum()
        };
        let shard = format!("shard=\"{FIRST_SHARD}\"");
        Self {
            messages: sum("althing_peer_sent_messages_total", ""),
            bytes: sum("althing_peer_sent_bytes_total", ""),
            local: sum("althing_reads_local", &shard),
            held: sum("althing_reads_held", &shard),
            by_index: sum("althing_reads_by_index", &shard),
        }
    }

    fn with(self, other: Self, sign: f64) -> Self {
        Self {
            messages: self.messages + sign * other.messages,
            bytes: self.bytes + sign * other.bytes,
            local: self.local + sign * other.local,
            held: self.held + sign * other.held,
            by_index: self.by_index + sign * other.by_index,
        }
    }

    /// Of two members, or of two rounds.
    pub fn plus(self, other: Self) -> Self {
        self.with(other, 1.0)
    }

    /// Since an earlier look.
    pub fn since(self, earlier: Self) -> Self {
        self.with(earlier, -1.0)
    }
}

/// What members sent each other while nobody asked, and while everybody read and nobody wrote.
#[derive(Clone, Copy, PartialEq, Debug, Default)]
pub struct Traffic {
    /// While nobody asked.
    pub idle: Counters,
    /// Seconds of it.
    pub idle_seconds: f64,
    /// While everybody read.
    pub reading: Counters,
    /// Seconds of it.
    pub reading_seconds: f64,
    /// Reads that clients had answered then.
    pub reads: usize,
}

impl Traffic {
    /// Adds another round's.
    pub fn plus(self, other: Self) -> Self {
        Self {
            idle: self.idle.plus(other.idle),
            idle_seconds: self.idle_seconds + other.idle_seconds,
            reading: self.reading.plus(other.reading),
            reading_seconds: self.reading_seconds + other.reading_seconds,
            reads: self.reads + other.reads,
        }
    }

    /// What one read adds to what members send anyway: heartbeats and leases, whose share is that of the time.
    fn per_read(self, of: fn(Counters) -> f64) -> f64 {
        let anyway = of(self.idle) * self.reading_seconds / self.idle_seconds;
        (of(self.reading) - anyway) / self.reads as f64
    }

    /// Messages that one read costs.
    pub fn messages_per_read(self) -> f64 {
        self.per_read(|counters| counters.messages)
    }

    /// Bytes that one read costs.
    pub fn bytes_per_read(self) -> f64 {
        self.per_read(|counters| counters.bytes)
    }

    /// Of all linearizable reads that members answered, the share that took no message.
    pub fn local_share(self) -> f64 {
        self.reading.local / (self.reading.local + self.reading.by_index)
    }
}

/// The group that holds the keys.
const FIRST_SHARD: u64 = 1;

/// What one member says of the shard's reads.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct View {
    /// Whether it leads.
    pub leads: bool,
    /// The mode that was asked for last, as the API writes it.
    pub mode: String,
    /// Index of that request.
    pub spec: u64,
    /// The roster that it takes part in.
    pub roster: String,
    /// Whether it would answer a read without a message.
    pub local: bool,
}

impl View {
    /// From the answer about its shards: of the first shard of keys, which is all that these members have beside the meta group.
    ///
    /// # Errors
    /// If it is none, or has no reads: the program is too old for them.
    pub fn parse(answer: &str) -> Result<Self, String> {
        let answer: Value = serde_json::from_str(answer).map_err(|error| error.to_string())?;
        let shards = answer["shards"].as_array().into_iter().flatten();
        let shard = shards
            .into_iter()
            .find(|shard| shard["id"] == FIRST_SHARD)
            .ok_or("it does not have the first shard")?;
        let reads = &shard["reads"];
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        Ok(Self {
            leads: shard["role"] == "Leader",
            mode: reads["mode"]
                .as_str()
                .ok_or("it knows one way to read only")?
                .to_owned(),
            spec: reads["specIndex"].as_u64().unwrap_or_default(),
            roster: text(&reads["roster"]),
            local: reads["local"] == true,
        })
    }
}

/// What a member said, and when that began.
pub type Observed = Vec<(Duration, View)>;

/// How long a change of rosters took: from the moment at which the leader made the new one until every responder answered reads under
/// it. Members are watched in the order of sites; the last state of `leader` names the roster that counts.
///
/// # Errors
/// If it did not come that far.
pub fn change(observed: &[Observed], leader: usize, responders: &[usize], spec: u64) -> Result<Duration, String> {
    let made = observed[leader].iter().find(|(_, view)| view.spec > spec);
    let (made, _) = made.ok_or("the leader did not hear of it")?;
    let last = observed[leader].last();
    let roster = last.map_or("", |(_, view)| &view.roster);
    let mut done = *made;
    for &member in responders {
        let under_it = |(at, view): &&(Duration, View)| at >= made && view.roster == roster && view.local;
        let (at, _) = observed[member]
            .iter()
            .find(under_it)
            .ok_or_else(|| format!("member {member} does not answer reads under roster {roster}"))?;
        done = done.max(*at);
    }
    Ok(done - *made)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ms(milliseconds: u64) -> Duration {
        Duration::from_millis(milliseconds)
    }

    fn event(client: u32, op: Op, from: u64, to: u64, reply: Option<Reply>) -> Event {
        Event {
            client: ClientId(client),
            op,
            invoked_ns: from * 1_000_000,
            returned_ns: to * 1_000_000,
            outcome: match reply {
                Some(reply) => Outcome::Ok { reply },
                None => Outcome::Unknown {
                    error: "timeout".to_owned(),
                },
            },
        }
    }

    fn get(client: u32, from: u64, to: u64) -> Event {
        let reply = Reply::Get {
            revision: 1,
            seen: None,
        };
        event(client, Op::Get { key: "k".to_owned() }, from, to, Some(reply))
    }

    fn put(client: u32, from: u64, to: u64, answered: bool) -> Event {
        let op = Op::Put {
            key: "k".to_owned(),
            value: from.to_string(),
        };
        event(client, op, from, to, answered.then_some(Reply::Put { revision: 1 }))
    }

    #[test]
    fn requests_count_where_their_client_sits_and_when_they_began() {
        let events = vec![
            get(0, 5, 20),
            get(6, 10, 12),
            get(1, 15, 18),
            put(4, 11, 41, true),
            put(4, 19, 50, false),
            get(2, 20, 21),
        ];
        let window = Window {
            from: ms(10),
            to: ms(20),
        };
        let samples = Samples::of(&History { events }, window);
        assert_eq!(samples.reads[1], [2.0, 3.0]);
        assert!(samples.reads[0].is_empty() && samples.reads[2].is_empty());
        assert_eq!(samples.writes[4], [30.0]);
        assert_eq!(samples.failed, 1);
    }

    #[test]
    fn a_gap_lies_between_acknowledged_writes_around_the_window() {
        let events = vec![
            put(0, 0, 10, true),
            put(0, 11, 90, false),
            put(1, 50, 100, true),
            put(1, 101, 110, true),
            put(1, 111, 300, true),
        ];
        let history = History { events };
        let window = |from, to| Window {
            from: ms(from),
            to: ms(to),
        };
        assert_eq!(write_gap(&history, window(20, 105)), ms(90));
        assert_eq!(write_gap(&history, window(102, 200)), ms(190));
        assert_eq!(write_gap(&history, window(400, 450)), ms(50));
    }

    #[test]
    fn only_reads_of_the_time_are_lifted_and_only_to_what_was_seen_before_them() {
        let get_at = |from, to, revision| {
            let op = Op::Get { key: "k".to_owned() };
            event(0, op, from, to, Some(Reply::Get { revision, seen: None }))
        };
        let events = vec![
            get_at(0, 10, 7),
            get_at(5, 30, 9),
            get_at(11, 12, 3),
            get_at(31, 32, 4),
            get_at(40, 41, 5),
        ];
        let window = Window {
            from: ms(10),
            to: ms(40),
        };
        let lifted = lifted(&History { events }, &[window]);
        let revisions: Vec<i64> = lifted
            .events
            .iter()
            .map(|event| event.reply().unwrap().revision())
            .collect();
        assert_eq!(revisions, [7, 9, 7, 9, 5]);
    }

    #[test]
    fn messages_are_summed_over_peers_and_reads_are_those_of_the_shard_that_clients_read() {
        let text = "# TYPE althing_reads_local gauge\n\
            althing_reads_by_index{shard=\"0\"} 2\n\
            althing_reads_local{shard=\"1\"} 40\n\
            althing_reads_locals{shard=\"1\"} 1000\n\
            althing_peer_sent_messages_total{peer=\"aa\"} 7\n\
            althing_peer_sent_messages_total{peer=\"bb\"} 8\n";
        let counters = Counters::parse(text);
        assert_eq!(
            counters,
            Counters {
                messages: 15.0,
                local: 40.0,
                ..Counters::default()
            }
        );
        assert_eq!(counters.plus(counters).since(counters), counters);
    }

    #[test]
    fn what_is_sent_anyway_is_not_charged_to_reads() {
        let count = |messages, bytes, local, by_index| Counters {
            messages,
            bytes,
            local,
            held: 0.0,
            by_index,
        };
        let traffic = Traffic {
            idle: count(100.0, 1000.0, 3.0, 0.0),
            idle_seconds: 2.0,
            reading: count(350.0, 4000.0, 25.0, 75.0),
            reading_seconds: 4.0,
            reads: 100,
        };
        assert!((traffic.messages_per_read() - 1.5).abs() < 1e-9);
        assert!((traffic.bytes_per_read() - 20.0).abs() < 1e-9);
        assert!((traffic.local_share() - 0.25).abs() < 1e-9);
        assert!((traffic.plus(traffic).messages_per_read() - 1.5).abs() < 1e-9);
    }

    #[test]
    fn a_members_answer_is_read_and_an_old_members_refused() {
        let answer = r#"{"shards":[{"id":1,"role":"Leader","reads":{"mode":"RosterLease","leaseMillis":1000,
            "specIndex":12,"roster":"2.3","responders":["aa"],"local":true,"localReads":5}}]}"#;
        let view = View {
            leads: true,
            mode: "RosterLease".to_owned(),
            spec: 12,
            roster: "2.3".to_owned(),
            local: true,
        };
        assert_eq!(View::parse(answer), Ok(view));
        assert!(View::parse(r#"{"shards":[{"id":1,"role":"Leader"}]}"#).is_err());
        assert!(View::parse("no").is_err());
    }

    #[test]
    fn a_change_lasts_until_the_last_responder_answers_under_the_new_roster() {
        let view = |spec, roster: &str, local| View {
            leads: false,
            mode: "RosterLease".to_owned(),
            spec,
            roster: roster.to_owned(),
            local,
        };
        let leader = vec![
            (ms(0), view(5, "1.1", true)),
            (ms(10), view(9, "1.1", false)),
            (ms(60), view(9, "1.2", true)),
        ];
        let slow = vec![
            (ms(0), view(5, "1.1", true)),
            (ms(90), view(9, "1.2", false)),
            (ms(130), view(9, "1.2", true)),
        ];
        let left_out = vec![(ms(0), view(5, "1.1", true))];
        let observed = [leader, slow, left_out];
        assert_eq!(change(&observed, 0, &[0, 1], 5), Ok(ms(120)));
        assert!(change(&observed, 0, &[0, 1, 2], 5).unwrap_err().contains("member 2"));
        assert!(change(&observed, 0, &[0], 9).is_err());
    }
}
