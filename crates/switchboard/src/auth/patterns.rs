//! The id patterns of the claim `allow_send`: the devices that a device may send to.

/// Maximum number of patterns in one token.
pub const PATTERNS_MAX: usize = 64;
/// Maximum bytes of one pattern; a longer one could match no id.
pub const PATTERN_LEN_MAX: usize = 128;

/// The ids that a device may send to. A pattern is an id in which `*` stands for any run of
/// characters, including none. An empty list allows nobody.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Patterns(Box<[Box<str>]>);

/// Reason why a list of patterns is rejected.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PatternsError {
    /// More than [`PATTERNS_MAX`].
    #[error("more than 64 patterns")]
    TooMany,
    /// A pattern is empty, longer than [`PATTERN_LEN_MAX`], or has a character that no id has.
    #[error("a pattern must be 1 to 128 of A-Z a-z 0-9 . _ : @ - and *")]
    Bad,
}

impl switchboard_broker::SendFilter for Patterns {
    fn allows(&self, to: &str) -> bool {
        Patterns::allows(self, to)
    }
}

impl Patterns {
    /// Checks and stores the patterns.
    pub fn new<T: Into<Box<str>>>(
        patterns: impl IntoIterator<Item = T>,
    ) -> Result<Patterns, PatternsError> {
        let patterns: Box<[Box<str>]> = patterns.into_iter().map(Into::into).collect();
        if patterns.len() > PATTERNS_MAX {
            return Err(PatternsError::TooMany);
        }
        let good = patterns.iter().all(|pattern| is_pattern(pattern));
        if good { Ok(Patterns(patterns)) } else { Err(PatternsError::Bad) }
    }

    /// Returns true if one of the patterns matches `id`, which is as on the wire.
    pub fn allows(&self, id: &str) -> bool {
        self.0.iter().any(|pattern| matches(pattern, id))
    }

    /// Returns the patterns as they were given.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = &str> {
        self.0.iter().map(AsRef::as_ref)
    }
}

fn is_pattern(pattern: &str) -> bool {
    let known = |byte: u8| byte.is_ascii_alphanumeric() || b"._:@-*".contains(&byte);
    (1..=PATTERN_LEN_MAX).contains(&pattern.len()) && pattern.bytes().all(known)
}

/// Matches each piece between two stars at its first occurrence after the previous piece. Greedy
/// is enough: an earlier occurrence leaves more of the id for the pieces to come. So there is no
/// backtracking, and one pass over the id per piece.
fn matches(pattern: &str, id: &str) -> bool {
    let Some((head, rest)) = pattern.split_once('*') else { return pattern == id };
    let Some(mut left) = id.strip_prefix(head) else { return false };
    let (middle, tail) = rest.rsplit_once('*').unwrap_or(("", rest));
    for piece in middle.split('*') {
        let Some(at) = left.find(piece) else { return false };
        left = &left[at + piece.len()..];
    }
    left.ends_with(tail)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Tries every run that a star could stand for, as the definition says.
    fn matches_naively(pattern: &[u8], id: &[u8]) -> bool {
        match pattern.split_first() {
            None => id.is_empty(),
            Some((b'*', rest)) => (0..=id.len()).any(|skip| matches_naively(rest, &id[skip..])),
            Some((first, rest)) => id
                .split_first()
                .is_some_and(|(byte, id)| byte == first && matches_naively(rest, id)),
        }
    }

    proptest! {
        /// Few letters, so that most pieces occur several times.
        #[test]
        fn patterns_match_as_the_naive_matcher(pattern in "[ab*]{1,9}", id in "[ab]{0,12}") {
            prop_assert_eq!(
                Patterns::new([pattern.as_str()]).unwrap().allows(&id),
                matches_naively(pattern.as_bytes(), id.as_bytes())
            );
        }
    }

    #[test]
    fn any_pattern_may_match() {
        let patterns = Patterns::new(["100000007", "sensor-*", "*@example.org", "a*b*c"]).unwrap();
        for id in ["100000007", "sensor-", "sensor-1", "x@example.org", "abc", "a.b.b.c"] {
            assert!(patterns.allows(id), "{id}");
        }
        for id in ["1000000071", "10000000", "Sensor-1", "sensor", "x@example.org.", "ab", "ac"] {
            assert!(!patterns.allows(id), "{id}");
        }
    }

    #[test]
    fn no_pattern_allows_nobody() {
        assert!(!Patterns::new::<&str>([]).unwrap().allows("a"));
    }

    #[test]
    fn patterns_are_bounded() {
        let of_len = |len| Patterns::new(["a".repeat(len)]).map(drop);
        assert_eq!(of_len(0), Err(PatternsError::Bad));
        assert_eq!(of_len(PATTERN_LEN_MAX), Ok(()));
        assert_eq!(of_len(PATTERN_LEN_MAX + 1), Err(PatternsError::Bad));
        let count = |count| Patterns::new(vec!["*"; count]).map(drop);
        assert_eq!(count(PATTERNS_MAX), Ok(()));
        assert_eq!(count(PATTERNS_MAX + 1), Err(PatternsError::TooMany));
        for wrong in ["a b", "ä", "a?", "[a]", "a\n"] {
            assert_eq!(Patterns::new([wrong]).map(drop), Err(PatternsError::Bad), "{wrong:?}");
        }
    }
}
