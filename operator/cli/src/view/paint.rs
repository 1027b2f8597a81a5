//! Colour and columns. Pure: whether there is colour is decided once, in `main`.

use anstyle::{AnsiColor, Style};
use comfy_table::{Cell as TableCell, Color, ContentArrangement, Table};

/// How a piece of text is meant.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Tone {
    /// As it is.
    Plain,
    /// As it should be.
    Good,
    /// On its way, or worth a look.
    Warn,
    /// Broken.
    Bad,
    /// Less important.
    Dim,
    /// A heading.
    Strong,
}

/// Whether to colour.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Paint {
    /// With ANSI colours.
    Colour,
    /// Without: not a terminal, or NO_COLOR is set (no-color.org).
    Mono,
}

impl Paint {
    /// The rule of no-color.org: any value but the empty one switches colour off; a pipe never gets any.
    pub(crate) fn decide(terminal: bool, no_color: Option<&str>) -> Paint {
        if terminal && no_color.is_none_or(str::is_empty) {
            Paint::Colour
        } else {
            Paint::Mono
        }
    }

    /// `text` in its tone.
    pub(crate) fn text(self, tone: Tone, text: &str) -> String {
        let style = match (self, tone) {
            (Paint::Mono, _) | (Paint::Colour, Tone::Plain) => return text.to_owned(),
            (Paint::Colour, Tone::Good) => AnsiColor::Green.on_default(),
            (Paint::Colour, Tone::Warn) => AnsiColor::Yellow.on_default(),
            (Paint::Colour, Tone::Bad) => AnsiColor::Red.on_default(),
            (Paint::Colour, Tone::Dim) => Style::new().dimmed(),
            (Paint::Colour, Tone::Strong) => Style::new().bold(),
        };
        format!("{style}{text}{style:#}")
    }

    /// Columns as kubectl shows them: a heading in capitals, no rules, three blanks between.
    pub(crate) fn table(self, heading: &[&str], rows: Vec<Vec<Cell>>) -> String {
        let mut table = Table::new();
        table.set_content_arrangement(ContentArrangement::Disabled);
        table.load_style(comfy_table::presets::NOTHING);
        match self {
            Paint::Colour => table.enforce_styling(),
            Paint::Mono => table.force_no_tty(),
        };
        table.set_header(heading.iter().map(TableCell::new));
        for row in rows {
            table.add_row(row.into_iter().map(|cell| {
                let shown = TableCell::new(cell.text);
                match cell.tone {
                    Tone::Plain => shown,
                    Tone::Good => shown.fg(Color::Green),
                    Tone::Warn => shown.fg(Color::Yellow),
                    Tone::Bad => shown.fg(Color::Red),
                    Tone::Dim => shown.fg(Color::DarkGrey),
                    Tone::Strong => shown.add_attribute(comfy_table::Attribute::Bold),
                }
            }));
        }
        for column in table.column_iter_mut() {
            column.set_padding((0, 3));
        }
        let lines: Vec<String> = table.lines().map(|line| line.trim_end().to_owned()).collect();
        lines.join("\n") + "\n"
    }
}

/// One field of a table.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Cell {
    text: String,
    tone: Tone,
}

/// A field in a tone. Nothing to show is shown as `-`, so that columns can be cut by programs.
pub(crate) fn cell(tone: Tone, text: impl ToString) -> Cell {
    let text = text.to_string();
    Cell {
        text: if text.is_empty() { "-".to_owned() } else { text },
        tone,
    }
}

/// A field as it is.
pub(crate) fn plain(text: impl ToString) -> Cell {
    cell(Tone::Plain, text)
}

/// An age as kubectl shows it: the two largest units at most, fewer as it grows.
pub(crate) fn age(seconds: i64) -> String {
    let seconds = seconds.max(0);
    let (minutes, hours, days) = (seconds / 60, seconds / 3600, seconds / 86_400);
    match (days, hours, minutes) {
        (0, 0, 0..2) => format!("{seconds}s"),
        (0, 0, 2..10) => format!("{minutes}m{}s", seconds % 60),
        (0, 0..3, _) => format!("{minutes}m"),
        (0, 3..8, _) => format!("{hours}h{}m", minutes % 60),
        (0..2, _, _) => format!("{hours}h"),
        (2..8, _, _) => format!("{days}d{}h", hours % 24),
        (_, _, _) => format!("{days}d"),
    }
}

#[cfg(test)]
mod tests {
    use expect_test::expect;

    use super::*;

    #[test]
    fn columns_line_up_and_an_empty_field_is_a_dash() {
        let rows = vec![
            vec![plain("orders"), cell(Tone::Good, "3/3"), plain("")],
            vec![plain("a-longer-name"), cell(Tone::Bad, "0/3"), plain("x")],
        ];
        expect![[r#"
            NAME            READY   LEADER
            orders          3/3     -
            a-longer-name   0/3     x
        "#]]
        .assert_eq(&Paint::Mono.table(&["NAME", "READY", "LEADER"], rows));
    }

    #[test]
    fn colour_is_only_for_terminals_and_can_be_refused() {
        assert_eq!(Paint::decide(true, None), Paint::Colour);
        assert_eq!(
            Paint::decide(true, Some("")),
            Paint::Colour,
            "no-color.org: empty means unset"
        );
        assert_eq!(Paint::decide(true, Some("1")), Paint::Mono);
        assert_eq!(Paint::decide(false, None), Paint::Mono);
        assert!(Paint::Colour.text(Tone::Bad, "x").contains('\u{1b}'));
        assert_eq!(Paint::Mono.text(Tone::Bad, "x"), "x");
        let row = || vec![vec![cell(Tone::Good, "x")]];
        assert!(Paint::Colour.table(&["A"], row()).contains('\u{1b}'));
        assert!(!Paint::Mono.table(&["A"], row()).contains('\u{1b}'));
    }

    #[test]
    fn ages_are_as_kubectl_shows_them() {
        for (seconds, shown) in [
            (-5, "0s"),
            (0, "0s"),
            (119, "119s"),
            (121, "2m1s"),
            (3599, "59m"),
            (7200, "120m"),
            (4 * 3600 + 60, "4h1m"),
            (30 * 3600, "30h"),
            (50 * 3600, "2d2h"),
            (900 * 3600, "37d"),
        ] {
            assert_eq!(age(seconds), shown, "{seconds}");
        }
    }
}
