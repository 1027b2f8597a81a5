//! Who gives out revisions in a keyspace of several shards.
//!
//! Contract: every revision is given out once. A request gets revisions above everything that was given out before it came, whoever
//! gave that out; what it is told to be the newest is at or above all of that. So revisions agree with real time, without clocks.
//!
//! The replica that leads the sequencer's group counts in memory, below a *ceiling* that its group has agreed on: a row of its own
//! state machine, raised well before it is reached. Who leads next begins above the ceiling, so nothing that was ever given out can be
//! given out again; what lies between is never used. Only who has raised the ceiling from what it was, by compare and swap, gives out
//! what lies below it. A leader that does not know that it was replaced would give out what is too small, so each request is answered only
//! after leadership was confirmed in a round (a read index, or a lease) that began after the request came. All requests of a turn
//! share one round.
//!
//! What it is not: it proposes nothing itself, knows no time and does not wait. The shell makes rounds and proposals of its outputs.

use althing_raft::ids::Term;
use althing_raft::io::RequestId;
use althing_store::ops::{Compare, CompareOp, CompareTarget, KeyRange, Op, Put, Revision, Txn};
use bytes::Bytes;
use std::collections::VecDeque;

/// The row with the ceiling, as a decimal number.
pub const CEILING_KEY: &[u8] = b"ceiling";
/// How far ahead the ceiling is raised: an entry of the log for so many revisions, and so many are left unused when the leader changes.
/// At a million writes a second it would be ten entries a second; 2^53, which some clients cannot count beyond, is far off
/// even with a new leader every second.
pub const CEILING_STEP: i64 = 100_000;
/// Revisions that one request may ask for: a leader's turn has fewer commands. At most half of what a raise brings, so that
/// every request can be answered.
pub const COUNT_MAX: u32 = 50_000;
/// Requests that wait. Each shard has a few under way, so this is a keyspace of thousands; beyond it they are told to ask again.
pub const REQUESTS_MAX: usize = 65_536;
/// Rounds under way. More would not be answered sooner than the next one that is free.
const ROUNDS_MAX: u64 = 8;

/// What happened.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Input {
    /// This replica leads, has applied everything of earlier terms and an entry of its own, and finds this in the row; `None`: the
    /// row is not there yet. Also the answer to [`Output::Restart`].
    Elected {
        /// In which term.
        term: Term,
        /// The row.
        ceiling: Option<Revision>,
    },
    /// It does not lead any more.
    Deposed,
    /// Somebody wants so many revisions, or with 0 to know the newest one given out.
    Request {
        /// Who.
        request: RequestId,
        /// How many, at most [`COUNT_MAX`].
        count: u32,
    },
    /// A round ended.
    Confirmed {
        /// Which.
        round: u64,
        /// The term in which this replica led when the round had begun, as a majority (or a lease) says; `None` if that is not known.
        term: Option<Term>,
    },
    /// A raise ended.
    Raised {
        /// Which.
        attempt: u64,
        /// Whether its transaction was applied and its comparison held. `false` also if that is not known.
        done: bool,
    },
}

/// What to do.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Output {
    /// Find out whether this replica leads, beginning now.
    Confirm {
        /// To be said with the answer.
        round: u64,
    },
    /// Propose [`raise`] in the sequencer's group.
    Raise {
        /// To be said with the answer.
        attempt: u64,
        /// What the row says.
        from: Revision,
        /// What it is to say.
        to: Revision,
    },
    /// The row is not what it was thought to be: read it again, once everything that is committed is applied, and say `Elected` if
    /// this replica leads still.
    Restart,
    /// Tell who asked.
    Answer {
        /// Who.
        request: RequestId,
        /// The first of the revisions given out, or the newest one if none was asked for. `None`: ask again, perhaps another replica.
        first: Option<Revision>,
    },
}

/// The row's value.
#[must_use]
pub fn ceiling_value(ceiling: Revision) -> Bytes {
    Bytes::from(ceiling.to_string())
}

/// What the row's value says; `None` if it is not one.
#[must_use]
pub fn parse_ceiling(value: &[u8]) -> Option<Revision> {
    let number: i64 = std::str::from_utf8(value).ok()?.parse().ok()?;
    (number > 0).then_some(Revision(number))
}

fn swap(target: CompareTarget, to: Revision) -> Txn {
    let key = Bytes::from_static(CEILING_KEY);
    Txn {
        compares: vec![Compare {
            keys: KeyRange::Single(key.clone()),
            op: CompareOp::Equal,
            target,
        }],
        success: vec![Op::Put(Put {
            key,
            value: Some(ceiling_value(to)),
            lease: Some(0),
            prev_kv: false,
        })],
        failure: Vec::new(),
    }
}

/// The transaction that starts a keyspace's sequencer above the revisions that its shard has counted itself. It fails if there is a row, so
/// that it may be repeated.
#[must_use]
pub fn start(above: Revision) -> Txn {
    swap(CompareTarget::Version(0), above)
}

/// The transaction that raises the ceiling, if the row says what the leader thinks.
#[must_use]
pub fn raise(from: Revision, to: Revision) -> Txn {
    swap(CompareTarget::Value(ceiling_value(from)), to)
}

#[derive(Clone, Copy, Debug)]
struct Waiting {
    request: RequestId,
    count: u32,
    /// The round that must be confirmed; `None`: one that has not begun.
    round: Option<u64>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum State {
    /// Another replica counts, or nobody does yet.
    Idle,
    /// This one does.
    Counting {
        term: Term,
        /// Nothing above this is given out.
        ceiling: i64,
        /// The raise under way, and how far.
        raising: Option<(u64, i64)>,
    },
}

/// The state machine of one replica of a sequencer's group.
#[derive(Clone, Debug)]
pub struct Sequencer {
    state: State,
    /// Everything up to here may have been given out by somebody.
    given_out: i64,
    waiting: VecDeque<Waiting>,
    /// The last round that began, the last one that ended, and the last one that said that this replica leads.
    round: u64,
    ended: u64,
    confirmed: u64,
    /// The last raise.
    attempt: u64,
}

impl Default for Sequencer {
    fn default() -> Self {
        Self {
            state: State::Idle,
            given_out: 0,
            waiting: VecDeque::new(),
            round: 0,
            ended: 0,
            confirmed: 0,
            attempt: 0,
        }
    }
}

impl Sequencer {
    /// Takes in everything that happened in one turn.
    pub fn turn(&mut self, inputs: impl IntoIterator<Item = Input>, out: &mut Vec<Output>) {
        for input in inputs {
            match input {
                Input::Elected { term, ceiling } => self.elected(term, ceiling, out),
                Input::Deposed => self.idle(out),
                Input::Request { request, count } => self.request(request, count, out),
                Input::Confirmed { round, term } => self.confirmed(round, term, out),
                Input::Raised { attempt, done } => self.raised(attempt, done, out),
            }
        }
        self.begin_round(out);
        self.raise_early(out);
    }

    /// Whether this replica gives out revisions.
    #[must_use]
    pub fn is_counting(&self) -> bool {
        self.state != State::Idle
    }

    fn elected(&mut self, term: Term, ceiling: Option<Revision>, out: &mut Vec<Output>) {
        match ceiling {
            None => self.idle(out),
            Some(Revision(ceiling)) => {
                // All of it may have been given out by those who led before.
                self.given_out = self.given_out.max(ceiling);
                let raising = None;
                self.state = State::Counting { term, ceiling, raising };
            }
        }
    }

    fn idle(&mut self, out: &mut Vec<Output>) {
        self.state = State::Idle;
        for waiting in self.waiting.drain(..) {
            out.push(refused(waiting.request));
        }
    }

    fn request(&mut self, request: RequestId, count: u32, out: &mut Vec<Output>) {
        if self.state == State::Idle || count > COUNT_MAX || self.waiting.len() >= REQUESTS_MAX {
            out.push(refused(request));
            return;
        }
        let round = None;
        self.waiting.push_back(Waiting { request, count, round });
    }

    fn begin_round(&mut self, out: &mut Vec<Output>) {
        let waits = self.waiting.back().is_some_and(|waiting| waiting.round.is_none());
        if !waits || self.round - self.ended >= ROUNDS_MAX {
            return;
        }
        self.round += 1;
        let newest = self.waiting.iter_mut().rev();
        for waiting in newest.take_while(|waiting| waiting.round.is_none()) {
            waiting.round = Some(self.round);
        }
        out.push(Output::Confirm { round: self.round });
    }

    fn confirmed(&mut self, round: u64, led_in: Option<Term>, out: &mut Vec<Output>) {
        self.ended = self.ended.max(round);
        // Had it led in another term since, what it knows of the ceiling would be too old.
        if matches!(self.state, State::Counting { term, .. } if led_in == Some(term)) {
            // Who led when a round began had led when earlier ones did.
            self.confirmed = self.confirmed.max(round);
            self.serve(out);
            return;
        }
        let confirmed = self.confirmed;
        self.waiting.retain(|waiting| {
            let failed = waiting
                .round
                .is_some_and(|wanted| wanted > confirmed && wanted <= round);
            if failed {
                out.push(refused(waiting.request));
            }
            !failed
        });
    }

    /// Answers in order whoever is confirmed, as far as the ceiling allows.
    fn serve(&mut self, out: &mut Vec<Output>) {
        let State::Counting { ceiling, .. } = self.state else {
            return;
        };
        while let Some(front) = self.waiting.front()
            && front.round.is_some_and(|wanted| wanted <= self.confirmed)
            && i64::from(front.count) <= ceiling - self.given_out
        {
            let first = if front.count == 0 {
                self.given_out
            } else {
                self.given_out + 1
            };
            self.given_out += i64::from(front.count);
            out.push(Output::Answer {
                request: front.request,
                first: Some(Revision(first)),
            });
            self.waiting.pop_front();
        }
    }

    /// Raises the ceiling before it is in the way.
    fn raise_early(&mut self, out: &mut Vec<Output>) {
        let State::Counting { ceiling, raising, .. } = &mut self.state else {
            return;
        };
        if raising.is_none() && *ceiling - self.given_out < CEILING_STEP / 2 {
            let to = self.given_out + CEILING_STEP;
            self.attempt += 1;
            *raising = Some((self.attempt, to));
            out.push(Output::Raise {
                attempt: self.attempt,
                from: Revision(*ceiling),
                to: Revision(to),
            });
        }
    }

    fn raised(&mut self, attempt: u64, done: bool, out: &mut Vec<Output>) {
        let State::Counting { ceiling, raising, .. } = &mut self.state else {
            return;
        };
        let Some((_, to)) = raising.take_if(|(under_way, _)| *under_way == attempt) else {
            return;
        };
        if done {
            *ceiling = to;
            self.serve(out);
        } else {
            // Somebody else has raised it, or may have: what lies between is not this replica's to give out.
            self.idle(out);
            out.push(Output::Restart);
        }
    }
}

fn refused(request: RequestId) -> Output {
    Output::Answer { request, first: None }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Replica {
        sequencer: Sequencer,
        out: Vec<Output>,
    }

    impl Replica {
        fn leading(ceiling: i64) -> Self {
            let mut this = Self {
                sequencer: Sequencer::default(),
                out: Vec::new(),
            };
            this.turn(&[elected(1, ceiling)]);
            this
        }

        fn turn(&mut self, inputs: &[Input]) -> Vec<Output> {
            self.out.clear();
            self.sequencer.turn(inputs.iter().copied(), &mut self.out);
            self.out.clone()
        }
    }

    fn elected(term: u64, ceiling: i64) -> Input {
        Input::Elected {
            term: Term(term),
            ceiling: Some(Revision(ceiling)),
        }
    }

    fn request(id: u64, count: u32) -> Input {
        let request = RequestId(id);
        Input::Request { request, count }
    }

    fn confirmed(round: u64) -> Input {
        let term = Some(Term(1));
        Input::Confirmed { round, term }
    }

    fn answer(id: u64, first: Option<i64>) -> Output {
        Output::Answer {
            request: RequestId(id),
            first: first.map(Revision),
        }
    }

    const RAISED: Input = Input::Raised { attempt: 1, done: true };

    #[test]
    fn one_round_covers_a_turn_and_revisions_are_given_out_in_order() {
        let mut replica = Replica::leading(500);
        let asked = replica.turn(&[request(1, 3), request(2, 0), request(3, 1), RAISED]);
        assert_eq!(asked, [Output::Confirm { round: 1 }]);
        let answers = replica.turn(&[confirmed(1)]);
        assert_eq!(
            answers,
            [answer(1, Some(501)), answer(2, Some(503)), answer(3, Some(504))]
        );
    }

    #[test]
    fn a_request_waits_for_a_round_that_began_after_it_came() {
        let mut replica = Replica::leading(500);
        replica.turn(&[request(1, 1), RAISED]);
        assert_eq!(replica.turn(&[request(2, 1)]), [Output::Confirm { round: 2 }]);
        assert_eq!(replica.turn(&[confirmed(1)]), [answer(1, Some(501))]);
        assert_eq!(replica.turn(&[confirmed(2)]), [answer(2, Some(502))]);
    }

    #[test]
    fn nothing_is_given_out_above_the_ceiling_nor_from_below_what_was_there() {
        let mut replica = Replica {
            sequencer: Sequencer::default(),
            out: Vec::new(),
        };
        assert_eq!(replica.turn(&[request(1, 1)]), [answer(1, None)]);
        let (from, to) = (Revision(500), Revision(500 + CEILING_STEP));
        let attempt = 1;
        assert_eq!(replica.turn(&[elected(1, 500)]), [Output::Raise { attempt, from, to }]);
        replica.turn(&[request(2, 1), request(3, 0)]);
        // What may have been given out by others is the newest already.
        assert_eq!(replica.turn(&[confirmed(1)]), []);
        assert_eq!(replica.turn(&[RAISED]), [answer(2, Some(501)), answer(3, Some(501))]);
    }

    #[test]
    fn a_round_of_another_term_confirms_nothing() {
        let mut replica = Replica::leading(500);
        replica.turn(&[request(1, 1), RAISED]);
        let other = Input::Confirmed {
            round: 1,
            term: Some(Term(3)),
        };
        assert_eq!(replica.turn(&[other]), [answer(1, None)]);
    }

    #[test]
    fn whoever_loses_the_ceiling_starts_again_above_it() {
        let mut replica = Replica::leading(500);
        let lost = Input::Raised {
            attempt: 1,
            done: false,
        };
        assert_eq!(replica.turn(&[request(1, 1), lost]), [answer(1, None), Output::Restart]);
        assert_eq!(replica.turn(&[request(2, 1)]), [answer(2, None)]);
        let row = 500 + CEILING_STEP;
        replica.turn(&[elected(1, row)]);
        let raised = Input::Raised { attempt: 2, done: true };
        replica.turn(&[raised, request(3, 1)]);
        assert_eq!(replica.turn(&[confirmed(1)]), [answer(3, Some(row + 1))]);
    }

    #[test]
    fn the_ceiling_is_raised_before_it_is_reached_and_large_requests_are_refused() {
        let mut replica = Replica::leading(1);
        replica.turn(&[RAISED, request(1, COUNT_MAX), request(2, COUNT_MAX + 1)]);
        assert!(replica.out.contains(&answer(2, None)));
        let out = replica.turn(&[confirmed(1)]);
        assert_eq!(out[0], answer(1, Some(2)));
        replica.turn(&[request(3, 1)]);
        let out = replica.turn(&[confirmed(2)]);
        let raise = Output::Raise {
            attempt: 2,
            from: Revision(1 + CEILING_STEP),
            to: Revision(i64::from(COUNT_MAX) + 2 + CEILING_STEP),
        };
        assert_eq!(out, [answer(3, Some(i64::from(COUNT_MAX) + 2)), raise]);
    }

    #[test]
    fn the_row_says_what_was_written() {
        assert_eq!(parse_ceiling(&ceiling_value(Revision(77))), Some(Revision(77)));
        assert_eq!(parse_ceiling(b"-1"), None);
        assert_eq!(parse_ceiling(b"x"), None);
    }
}
