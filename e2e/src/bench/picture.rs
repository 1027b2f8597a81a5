//! What all reports' pictures share: how they begin and end, and how they write numbers and texts. Pure.

use std::fmt::Write;

/// Of every picture, so that they look alike below each other.
pub(super) const WIDTH: f64 = 860.0;
/// From one line of small print to the next.
const NOTE: f64 = 16.0;

/// A picture up to its heading, in colours for a light and a dark page.
pub(super) fn begin(height: f64, title: &str, heading: &str) -> String {
    format!(
        r#"<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" font-family="system-ui, sans-serif" font-size="13" fill="currentColor">
<style>svg {{ color: #222; background: #fff }} @media (prefers-color-scheme: dark) {{ svg {{ color: #ddd; background: #111 }} }}</style>
<title>{title}</title>
<text x="16" y="26" font-size="17" font-weight="600">{heading}</text>
"#,
        title = escape(title),
        heading = escape(heading),
    )
}

/// Its end: small print that tells how it was measured, the first line at `top`.
pub(super) fn end(out: &mut String, top: f64, notes: &[String]) {
    for (at, note) in notes.iter().enumerate() {
        let _ = writeln!(
            out,
            r#"<text x="16" y="{y}" font-size="11" opacity="0.75">{note}</text>"#,
            y = top + NOTE * at as f64,
            note = escape(note),
        );
    }
    out.push_str("</svg>\n");
}

/// `12345.6` as `12 346`.
pub(super) fn thousands(value: f64) -> String {
    let digits = format!("{value:.0}");
    let mut out = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            out.push(' ');
        }
        out.push(digit);
    }
    out
}

/// Three digits that matter.
pub(super) fn short(value: f64) -> String {
    if value >= 100.0 {
        format!("{value:.0}")
    } else if value >= 10.0 {
        format!("{value:.1}")
    } else {
        format!("{value:.2}")
    }
}

pub(super) fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_are_short_and_texts_are_escaped() {
        assert_eq!([thousands(999.4), thousands(1_234_567.0)], ["999", "1 234 567"]);
        assert_eq!([short(123.4), short(12.34), short(1.234)], ["123", "12.3", "1.23"]);
        assert_eq!(escape("a<b&c"), "a&lt;b&amp;c");
    }
}
