//! Which part of a key is hashed.

/// The bytes of a key that decide its slot: its first `segments` segments, parted by `/`, without the `/` behind them; the whole
/// key if none are given or it has no more. A `/` at the front opens no segment of its own: two segments of
/// `/registry/pods/default/web` are `/registry/pods`.
#[must_use]
pub fn prefix(key: &[u8], segments: Option<u8>) -> &[u8] {
    let Some(segments) = segments else { return key };
    let mut left = segments;
    if left == 0 {
        return &[];
    }
    for (at, byte) in key.iter().enumerate().skip(1) {
        if *byte == b'/' {
            left -= 1;
            if left == 0 {
                return &key[..at];
            }
        }
    }
    key
}

/// The prefix that all keys in `[start, end)` have in common as [`prefix`] cuts it, if they have: then a range is one slot's. `None`
/// also for some ranges that happen to hold keys of one prefix only, such as that of a single key; never for what a client asks who
/// lists a directory at least `segments` deep.
#[must_use]
pub fn prefix_of_range<'s>(start: &'s [u8], end: &[u8], segments: Option<u8>) -> Option<&'s [u8]> {
    let common = prefix(start, segments);
    if segments? == 0 {
        return Some(common);
    }
    // Keys that begin with `common` and a `/` are those in [common '/', common '0').
    let begins = start.get(common.len()) == Some(&b'/');
    let (same, behind) = end.split_at_checked(common.len())?;
    let ends = same < common || same == common && behind <= &b"0"[..];
    (begins && ends).then_some(common)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prefix_ends_before_the_slash_that_closes_its_last_segment() {
        let cut = |key: &'static str, segments| std::str::from_utf8(prefix(key.as_bytes(), segments)).unwrap();
        assert_eq!(cut("/registry/pods/default/web", Some(2)), "/registry/pods");
        assert_eq!(cut("/registry/pods", Some(2)), "/registry/pods");
        assert_eq!(cut("/registry/pods/", Some(2)), "/registry/pods");
        assert_eq!(cut("locks/door/694d77aa9e38260f", Some(2)), "locks/door");
        assert_eq!(cut("locks", Some(2)), "locks");
        assert_eq!(cut("a//b", Some(2)), "a/");
        assert_eq!(cut("//b", Some(1)), "/");
        assert_eq!(cut("", Some(1)), "");
        assert_eq!(cut("any/thing", None), "any/thing");
        assert_eq!(cut("any/thing", Some(0)), "", "no segments: all keys together");
    }

    #[test]
    fn listing_a_directory_stays_with_its_prefix() {
        let common = |start: &'static str, end: &'static str| {
            let range = prefix_of_range(start.as_bytes(), end.as_bytes(), Some(2));
            range.map(|prefix| std::str::from_utf8(prefix).unwrap())
        };
        assert_eq!(common("/registry/pods/", "/registry/pods0"), Some("/registry/pods"));
        assert_eq!(
            common("/registry/pods/default/", "/registry/pods/default0"),
            Some("/registry/pods")
        );
        // A client's next page begins behind the last key.
        assert_eq!(
            common("/registry/pods/default/web\0", "/registry/pods0"),
            Some("/registry/pods")
        );
        assert_eq!(common("/registry/pods/", "/registry/pods1"), None);
        // `/registry/pods-old` is in it.
        assert_eq!(common("/registry/pods", "/registry/pods0"), None);
        assert_eq!(common("/registry/", "/registry0"), None);
        assert_eq!(prefix_of_range(b"a", b"b", None), None);
        assert_eq!(prefix_of_range(b"a", b"b", Some(0)), Some(&b""[..]));
    }
}
