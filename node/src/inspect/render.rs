//! The report as text.

use super::{Found, GroupReport, Report};
use std::fmt::Write;

/// Segments that are shown one by one; of longer logs the first and the last ones.
const SEGMENTS_SHOWN: usize = 24;

/// The report for a person: what is there, what is wrong, what to do.
#[must_use]
pub fn render(report: &Report) -> String {
    let mut out = String::new();
    // Writing to a string cannot fail.
    let _ = write(report, &mut out);
    out
}

fn size(bytes: u64) -> String {
    let mut value = bytes as f64;
    for unit in ["B", "KiB", "MiB", "GiB"] {
        if value < 1024.0 {
            return if unit == "B" {
                format!("{bytes} B")
            } else {
                format!("{value:.1} {unit}")
            };
        }
        value /= 1024.0;
    }
    format!("{value:.1} TiB")
}

fn write(report: &Report, out: &mut String) -> std::fmt::Result {
    writeln!(
        out,
        "volume    {}{}",
        report.data_dir.display(),
        if report.in_use { "  (in use by a process)" } else { "" }
    )?;
    match &report.identity {
        Found::Read(identity) => writeln!(
            out,
            "identity  {}, member {}, {}",
            identity.name,
            identity.member_id,
            match &identity.cluster_id {
                Some(cluster) => format!("cluster {cluster}"),
                None => "in no cluster".to_owned(),
            }
        )?,
        Found::Missing => writeln!(out, "identity  none: the volume was never started from")?,
        Found::Problem(problem) => writeln!(out, "identity  BROKEN: {problem}")?,
    }

    match &report.wal {
        Found::Missing => writeln!(out, "log       none")?,
        Found::Problem(problem) => writeln!(out, "log       BROKEN: {problem}")?,
        Found::Read(wal) => {
            writeln!(
                out,
                "log       {}, {} segment(s), {} spare(s)",
                size(wal.bytes),
                wal.segments.len(),
                wal.spares
            )?;
            if let Some((file, offset)) = &wal.torn_tail {
                writeln!(
                    out,
                    "          torn end: {}, byte {offset}; nothing of it was acknowledged",
                    file.display()
                )?;
            }
            if let Some(problem) = &wal.problem {
                writeln!(out, "          BROKEN: {problem}")?;
            }
            writeln!(
                out,
                "\n  {:<21} {:>10} {:>10}  {:<23} entries",
                "segment (= salt)", "bytes", "used", "records"
            )?;
            let hidden = wal.segments.len().saturating_sub(SEGMENTS_SHOWN);
            for (at, segment) in wal.segments.iter().enumerate() {
                if hidden > 0
                    && (SEGMENTS_SHOWN / 2..SEGMENTS_SHOWN / 2 + hidden).contains(&at)
                    && segment.problem.is_none()
                {
                    if at == SEGMENTS_SHOWN / 2 {
                        writeln!(out, "  ... {hidden} more, all of them with -o json")?;
                    }
                    continue;
                }
                let records = segment
                    .sequence
                    .map_or_else(|| "none".to_owned(), |(first, last)| format!("{first}..{last}"));
                let entries: Vec<_> = segment
                    .entries
                    .iter()
                    .map(|(group, records, first, last)| format!("shard {group}: {first}..{last} ({records})"))
                    .collect();
                let last = at + 1 == wal.segments.len();
                writeln!(
                    out,
                    "  {:<21} {:>10} {:>10}  {:<23} {}{}",
                    segment.file,
                    size(segment.bytes),
                    size(segment.used),
                    records,
                    entries.join(", "),
                    if last { "  <- written to" } else { "" },
                )?;
                if let Some(problem) = &segment.problem {
                    writeln!(out, "    BROKEN: {problem}")?;
                }
            }
            writeln!(out)?;
        }
    }

    let state = &report.state;
    match &state.marker {
        Found::Read(marker) => writeln!(out, "state     {}, marker {marker:?}", size(state.bytes))?,
        Found::Missing => writeln!(out, "state     none, or its creation was cut short (no marker)")?,
        Found::Problem(problem) => writeln!(out, "state     BROKEN: the marker cannot be read: {problem}")?,
    }
    if let Some(problem) = &state.problem {
        writeln!(
            out,
            "          {}{problem}",
            if state.damaged { "BROKEN: " } else { "" }
        )?;
    }
    if !state.quarantined.is_empty() {
        writeln!(out, "          earlier damage: {}", state.quarantined.join(", "))?;
    }
    for group in &report.groups {
        write_group(group, out)?;
    }

    writeln!(out, "\nverdict   {:?}: {}", report.verdict.action, report.verdict.text)?;
    writeln!(out, "next      {}", report.verdict.next)
}

fn write_group(group: &GroupReport, out: &mut String) -> std::fmt::Result {
    writeln!(
        out,
        "shard {:<3} term {}, vote {}, commit {}, log {}..{}",
        group.group,
        group.term,
        group.vote.as_deref().unwrap_or("none"),
        group.commit,
        group.log_start + 1,
        group.log_last,
    )?;
    match &group.state {
        Found::Read(state) => {
            writeln!(
                out,
                "          applied {} (term {}), revision {}{}, {} keys in {} rows, {}",
                state.applied,
                state.applied_term,
                state.revision,
                state
                    .compacted
                    .map_or_else(String::new, |revision| format!(" (compacted at {revision})")),
                state.keys,
                state.rows,
                size(state.bytes),
            )?;
            for member in &state.members {
                writeln!(
                    out,
                    "          {} {} {} at {}",
                    if member.voter { "voter  " } else { "learner" },
                    member.id,
                    member.name,
                    member.peer_address,
                )?;
            }
        }
        Found::Missing => writeln!(out, "          nothing applied")?,
        Found::Problem(_) => writeln!(out, "          its state was not read, see above")?,
    }
    Ok(())
}
