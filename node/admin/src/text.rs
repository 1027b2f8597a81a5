//! Keys as text. etcd's keys are bytes; JSON, YAML and terminals want text that a person can read, and that can be read back
//! to the very same bytes.

/// Why a text is no key.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "`{text}` has a `\\` at byte {at} that begins no escape; write `\\\\` for a backslash and `\\x00` for any byte"
)]
pub struct KeyTextError {
    /// The text.
    pub text: String,
    /// Where the backslash is.
    pub at: usize,
}

/// Writes a key: printable ASCII as it is, a backslash as `\\`, any other byte as `\xNN`.
#[must_use]
pub fn write_key(key: &[u8]) -> String {
    use std::fmt::Write as _;
    let mut text = String::with_capacity(key.len());
    for byte in key {
        match byte {
            b'\\' => text.push_str("\\\\"),
            b' '..=b'~' => text.push(char::from(*byte)),
            0..=0x1f | 0x7f..=0xff => {
                write!(text, "\\x{byte:02x}").expect("invariant: a String takes all that is written to it");
            }
        }
    }
    text
}

/// Reads what [`write_key`] writes, and any other text: what is no escape stands for its UTF-8 bytes.
///
/// # Errors
/// If a backslash begins neither `\\` nor `\xNN`.
pub fn read_key(text: &str) -> Result<Vec<u8>, KeyTextError> {
    let bytes = text.as_bytes();
    let mut key = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while let Some(byte) = bytes.get(at) {
        if *byte != b'\\' {
            key.push(*byte);
            at += 1;
            continue;
        }
        let escape = match bytes.get(at + 1) {
            Some(b'\\') => Some((b'\\', 2)),
            Some(b'x') => bytes
                .get(at + 2..at + 4)
                .and_then(|digits| Some(hex(digits[0])? << 4 | hex(digits[1])?))
                .map(|byte| (byte, 4)),
            Some(_) | None => None,
        };
        let Some((byte, length)) = escape else {
            return Err(KeyTextError {
                text: text.to_owned(),
                at,
            });
        };
        key.push(byte);
        at += length;
    }
    Ok(key)
}

fn hex(digit: u8) -> Option<u8> {
    match digit {
        b'0'..=b'9' => Some(digit - b'0'),
        b'a'..=b'f' => Some(digit - b'a' + 10),
        b'A'..=b'F' => Some(digit - b'A' + 10),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_written_for_people_and_read_back() {
        for (key, text) in [
            (&b"/orders/m"[..], "/orders/m"),
            (b"", ""),
            (b"a\\b", "a\\\\b"),
            (b"a\0\xff", "a\\x00\\xff"),
            ("ä".as_bytes(), "\\xc3\\xa4"),
        ] {
            assert_eq!(write_key(key), text);
            assert_eq!(read_key(text).as_deref(), Ok(key));
        }
        let all: Vec<u8> = (0..=255).collect();
        assert_eq!(read_key(&write_key(&all)), Ok(all));
    }

    #[test]
    fn a_person_may_write_letters_of_any_language() {
        assert_eq!(read_key("ä\\x2F").as_deref(), Ok("ä/".as_bytes()));
    }

    #[test]
    fn a_lone_backslash_is_refused_with_its_place() {
        for (text, at) in [("\\", 0), ("a\\n", 1), ("a\\x0", 1), ("\\xg0", 0), ("\\xä", 0)] {
            assert_eq!(read_key(text).expect_err("it is refused").at, at, "{text}");
        }
        let message = read_key("a\\n").expect_err("it is refused").to_string();
        assert!(message.contains("`a\\n` has a `\\` at byte 1"), "{message}");
    }
}
