//! What the leader of a shard does with commands and reads before they reach the log: a model of the host's part.
//!
//! Commands wait for revisions of the sequencer; each ticket asks for those of all commands that wait, a few tickets are under way, and
//! commands take revisions in the order of their tickets. A read waits until leadership is confirmed and everything of the tickets that
//! were under way when it came is applied.

use althing_store::ops::{Command, Range, Revision};
use std::collections::{BTreeMap, BTreeSet, VecDeque};

/// Tickets under way.
const TICKETS_MAX: usize = 2;

/// A command that waits for its revision.
#[derive(Clone, Debug)]
pub(super) struct Held {
    pub(super) client: usize,
    pub(super) call: u64,
    /// The client's request.
    pub(super) record: usize,
    pub(super) command: Command,
}

/// Commands with their revisions, each with its ticket.
pub(super) type Stamped = Vec<(u64, Held, Revision)>;

#[derive(Clone, Debug)]
struct Ticket {
    id: u64,
    commands: Vec<Held>,
    first: Option<Revision>,
    /// The question under way, if one is.
    asked: Option<u64>,
}

/// A read that waits.
#[derive(Clone, Debug)]
pub(super) struct Resolve {
    pub(super) client: usize,
    pub(super) call: u64,
    pub(super) ranges: Vec<Range>,
    pub(super) confirmed: bool,
    pub(super) waits_for: BTreeSet<u64>,
}

#[derive(Clone, Debug, Default)]
pub(super) struct Leader {
    pub(super) term: u64,
    held: Vec<Held>,
    tickets: VecDeque<Ticket>,
    /// Commands of a ticket that are in the log and not applied.
    proposed: BTreeMap<u64, usize>,
    pub(super) reads: BTreeMap<u64, Resolve>,
    /// Numbers of tickets, questions and reads.
    numbers: u64,
}

/// What the sequencer is to be asked.
pub(super) struct Question {
    pub(super) number: u64,
    pub(super) count: u32,
}

impl Leader {
    pub(super) fn new(term: u64) -> Self {
        Self {
            term,
            ..Self::default()
        }
    }

    pub(super) fn number(&mut self) -> u64 {
        self.numbers += 1;
        self.numbers
    }

    pub(super) fn hold(&mut self, held: Held) -> Option<Question> {
        self.held.push(held);
        self.ask()
    }

    /// Makes a ticket of all that is held, if there is room for one.
    fn ask(&mut self) -> Option<Question> {
        if self.held.is_empty() || self.tickets.len() >= TICKETS_MAX {
            return None;
        }
        let commands = std::mem::take(&mut self.held);
        let (id, number) = (self.number(), self.number());
        let count = commands.len() as u32;
        self.tickets.push_back(Ticket {
            id,
            commands,
            first: None,
            asked: Some(number),
        });
        Some(Question { number, count })
    }

    /// Asks again for all tickets that have no revisions; earlier questions do not count any more.
    pub(super) fn again(&mut self) -> Vec<Question> {
        let mut questions = Vec::new();
        let mut numbers = self.numbers;
        for ticket in &mut self.tickets {
            if ticket.first.is_none() {
                numbers += 1;
                ticket.asked = Some(numbers);
                questions.push(Question {
                    number: numbers,
                    count: ticket.commands.len() as u32,
                });
            }
        }
        self.numbers = numbers;
        questions.extend(self.ask());
        questions
    }

    /// Makes the next ticket, if there is room now.
    pub(super) fn again_if_room(&mut self) -> Option<Question> {
        self.ask()
    }

    /// Takes an answer in; what may go into the log now, in order, each with its ticket.
    pub(super) fn stamped(&mut self, question: u64, first: Option<Revision>) -> Stamped {
        if let Some(ticket) = self.tickets.iter_mut().find(|ticket| ticket.asked == Some(question)) {
            ticket.first = first;
        }
        let mut ready = Vec::new();
        while let Some(ticket) = self.tickets.pop_front_if(|ticket| ticket.first.is_some()) {
            let first = ticket.first.expect("it has one").0;
            self.proposed.insert(ticket.id, ticket.commands.len());
            let commands = ticket.commands.into_iter().zip(first..);
            ready.extend(commands.map(|(held, revision)| (ticket.id, held, Revision(revision))));
        }
        ready
    }

    pub(super) fn applied(&mut self, ticket: u64) {
        if let Some(left) = self.proposed.get_mut(&ticket) {
            *left -= 1;
            if *left == 0 {
                self.proposed.remove(&ticket);
                for read in self.reads.values_mut() {
                    read.waits_for.remove(&ticket);
                }
            }
        }
    }

    /// Tickets that a read which comes now has to wait for.
    pub(super) fn under_way(&self) -> BTreeSet<u64> {
        let tickets = self.tickets.iter().map(|ticket| ticket.id);
        tickets.chain(self.proposed.keys().copied()).collect()
    }

    /// Reads that need not wait any longer.
    pub(super) fn ready(&mut self) -> Vec<Resolve> {
        let ready = |_: &u64, read: &mut Resolve| read.confirmed && read.waits_for.is_empty();
        self.reads.extract_if(.., ready).map(|(_, read)| read).collect()
    }
}
