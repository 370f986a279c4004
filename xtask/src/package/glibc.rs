//! The glibc version that a binary needs.

use std::path::Path;

use crate::command::Program;
use crate::step::Failure;

/// Newest version that a package may need: that of Debian 10, Ubuntu 20.04 and RHEL 8.
pub(super) const NEWEST: Version = Version(2, 28);

/// A version such as 2.28. The third number of some old symbols is ignored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Version(u32, u32);

/// Prints the glibc version that the binary needs; fails if it is newer than [`NEWEST`].
pub(super) fn check(binary: &Path) -> Result<(), Failure> {
    let symbols = Program::new("objdump").arg("-T").arg(binary).output();
    let needed = symbols.as_deref().and_then(newest);
    let Some(needed) = needed else {
        return Err(Failure::new(format!("objdump finds no glibc in {}", binary.display())));
    };
    println!("    needs glibc {}.{}", needed.0, needed.1);
    if needed > NEWEST {
        return Err(Failure::new(format!(
            "the binary needs glibc {}.{}, packages may need {}.{} at the most",
            needed.0, needed.1, NEWEST.0, NEWEST.1
        )));
    }
    Ok(())
}

/// Returns the newest glibc version that a list of dynamic symbols names.
fn newest(symbols: &str) -> Option<Version> {
    symbols.split("GLIBC_").skip(1).filter_map(version).max()
}

fn version(text: &str) -> Option<Version> {
    let end = text.find(|c: char| c != '.' && !c.is_ascii_digit()).unwrap_or(text.len());
    let mut numbers = text[..end].split('.').map(str::parse);
    Some(Version(numbers.next()?.ok()?, numbers.next()?.ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    const SYMBOLS: &str = "
0000000000000000      DF *UND*  0000000000000000 (GLIBC_2.2.5) malloc
0000000000000000  w   DF *UND*  0000000000000000 (GLIBC_2.28) statx
0000000000000000      DF *UND*  0000000000000000 (GLIBC_2.9) pipe2";

    #[test]
    fn versions_are_compared_as_numbers() {
        assert_eq!(newest(SYMBOLS), Some(Version(2, 28)));
        assert_eq!(newest("nothing dynamic"), None);
    }
}
