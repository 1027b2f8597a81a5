//! A report as a picture: a pair of bars for every case, and the ratios beside them. Pure.

use std::fmt::Write;

use super::picture::{WIDTH, begin, end, escape, short, thousands};
use super::report::{Figures, Line, Report};

/// Where bars begin, and the longest bar.
const LEFT: f64 = 190.0;
const BAR_MAX: f64 = 370.0;
const HEAD: f64 = 64.0;
const ROW: f64 = 58.0;
const BAR: f64 = 19.0;
/// Two colours that also differ in brightness; both readable on white and on black.
const ETCD: &str = "#8a94a6";
const ALTHING: &str = "#2f7de1";

/// The whole picture.
pub fn svg(report: &Report) -> String {
    let height = HEAD + ROW * report.lines.len() as f64 + 40.0;
    let setting = &report.setting;
    let mut out = begin(
        height,
        "Althing and etcd, requests a second",
        &format!("Requests a second, {} members each, fsync on", setting.members),
    );
    let _ = writeln!(
        out,
        r#"<rect x="{LEFT}" y="38" width="12" height="12" fill="{ETCD}"/><text x="{etcd_at}" y="48">etcd {etcd}</text>
<rect x="{althing_box}" y="38" width="12" height="12" fill="{ALTHING}"/><text x="{althing_at}" y="48">Althing {althing}</text>"#,
        etcd = escape(setting.etcd),
        althing = match setting.shards {
            1 => escape(setting.althing),
            shards => format!("{}, {shards} shards", escape(setting.althing)),
        },
        etcd_at = LEFT + 18.0,
        althing_box = LEFT + 110.0,
        althing_at = LEFT + 128.0,
    );
    let mut top = HEAD;
    for line in &report.lines {
        row(&mut out, line, top);
        top += ROW;
    }
    let note = format!(
        "{cores} cores shared by six members and the load generator; {fs}; {key} B keys, {value} B values; medians of {rounds} interleaved rounds. CPU: all members, for one request.",
        cores = setting.cores,
        fs = setting.filesystem,
        key = setting.key_bytes,
        value = setting.value_bytes,
        rounds = setting.rounds,
    );
    end(&mut out, top + 20.0, &[note]);
    out
}

/// One case. Bars of one case share a scale of their own: a single client's are too short to compare on that of a thousand.
fn row(out: &mut String, line: &Line, top: f64) {
    let longest = line.etcd.requests_per_second.max(line.althing.requests_per_second);
    let plural = if line.clients == 1 { "" } else { "s" };
    let _ = writeln!(
        out,
        r#"<text x="16" y="{y}" font-weight="600">{case}</text><text x="16" y="{below}" font-size="11" opacity="0.75">{clients} client{plural}</text>"#,
        y = top + 15.0,
        below = top + 31.0,
        case = escape(line.case),
        clients = line.clients,
    );
    let mut bar = |figures: &Figures, colour: &str, at: f64| {
        let length = BAR_MAX * figures.requests_per_second / longest;
        let _ = writeln!(
            out,
            r#"<rect x="{LEFT}" y="{at:.1}" width="{length:.1}" height="{BAR}" rx="2" fill="{colour}"/><text x="{text:.1}" y="{y:.1}">{rate} <tspan font-size="11" opacity="0.75">p50 {p50} ms, {cpu:.0} µs CPU</tspan></text>"#,
            text = LEFT + length + 6.0,
            y = at + 14.0,
            rate = thousands(figures.requests_per_second),
            p50 = short(figures.p50_ms),
            cpu = figures.server_cpu_us_per_request,
        );
    };
    bar(&line.etcd, ETCD, top);
    bar(&line.althing, ALTHING, top + BAR + 2.0);
    let _ = writeln!(
        out,
        r#"<text x="{x}" y="{y}" font-weight="600" text-anchor="end">{ratio:.1}x</text>"#,
        x = WIDTH - 12.0,
        y = top + 26.0,
        ratio = line.throughput_ratio,
    );
}

#[cfg(test)]
mod tests {
    use super::super::report::tests::{CASE, sample, setting};
    use super::super::report::{Report, System};
    use super::*;

    #[test]
    fn the_faster_bar_is_the_longest_and_the_other_is_to_scale() {
        let samples = [
            sample(System::Etcd, 10_000.0, 0.4),
            sample(System::Althing, 20_000.0, 0.2),
        ];
        let picture = svg(&Report::new(setting(), &[CASE], &samples));
        assert!(
            picture.contains(r#"width="370.0""#) && picture.contains(r#"width="185.0""#),
            "{picture}"
        );
        assert!(picture.contains("20 000") && picture.contains("2.0x"), "{picture}");
    }
}
