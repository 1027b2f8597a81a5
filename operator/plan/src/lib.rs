//! The planner: what is desired and what is observed go in, steps come out, each with its reason.
//!
//! Contract: [`plan`] is a pure function. Its steps are safe to repeat and safe to lose: an executor carries them out,
//! crashes or not, observes again and asks again. It never changes the configuration by more than one member at a time,
//! never takes a voter away while the rest would have no quorum, never bootstraps a cluster twice and never deletes the
//! volume of a member of the configuration. [`assess`] turns the same inputs into conditions, and [`explain`] into
//! sentences. [`layout`] does the same for one `ShardLayout`.
//!
//! Not here: how a step is carried out (the operator's pods, the CLI's processes), clocks, clients.

mod assess;
mod bootstrap;
mod explain;
mod guard;
pub mod layout;
mod membership;
pub mod model;
mod planner;
mod rollout;
pub mod view;

pub use assess::{Assessment, ConditionKind, ConditionState, ConditionStatus, MemberRow, Role, assess};
pub use explain::explain;
pub use guard::spare;
pub use planner::plan;
