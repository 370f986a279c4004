//! Makes damaged inputs from valid ones, the same ones in every run.

/// Maximum length of an input; enough to exceed every limit that the targets set.
const LEN_MAX: usize = 8192;

/// Bytes and numbers at which parsers change their behaviour.
const ODD_BYTES: [u8; 12] = [0, 1, b',', b'\n', b' ', 0x7E, 0x7F, 0x80, 0x81, 0x88, 0xC2, 0xFF];

/// An endless source of mutated seeds.
pub(crate) struct Mutator {
    seeds: Vec<Vec<u8>>,
    state: u64,
}

impl Mutator {
    /// Creates a mutator for `seeds`, which must not be empty.
    pub(crate) fn new(seeds: Vec<Vec<u8>>) -> Mutator {
        Mutator { seeds, state: 0 }
    }

    /// Returns a seed with one to six changes.
    pub(crate) fn mutated(&mut self) -> Vec<u8> {
        let mut input = self.seed();
        for _ in 0..=self.up_to(5) {
            self.change(&mut input);
        }
        input.truncate(LEN_MAX);
        input
    }

    fn seed(&mut self) -> Vec<u8> {
        let at = self.up_to(self.seeds.len() - 1);
        self.seeds[at].clone()
    }

    fn change(&mut self, input: &mut Vec<u8>) {
        let at = self.up_to(input.len());
        let end = at + self.up_to((input.len() - at).min(64));
        match self.up_to(7) {
            0 if at < input.len() => input[at] ^= 1 << self.up_to(7),
            1 if at < input.len() => input[at] = self.next() as u8,
            2 if at < input.len() => input[at] = self.odd_byte(),
            3 => input.insert(at, self.odd_byte()),
            4 => drop(input.drain(at..end)),
            5 => {
                let piece = input[at..end].to_vec();
                let copies = self.up_to(8);
                input.splice(at..at, piece.repeat(copies));
            }
            6 => input.truncate(at),
            _ => {
                let other = self.seed();
                let from = self.up_to(other.len());
                input.splice(at..at, other[from..].iter().copied());
            }
        }
    }

    fn odd_byte(&mut self) -> u8 {
        ODD_BYTES[self.up_to(ODD_BYTES.len() - 1)]
    }

    /// Returns a number from 0 to `max`, both included.
    fn up_to(&mut self, max: usize) -> usize {
        (self.next() % (max as u64 + 1)) as usize
    }

    /// SplitMix64 (Steele, Lea and Flood, "Fast Splittable Pseudorandom Number Generators", 2014).
    fn next(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut mixed = self.state;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        mixed ^ (mixed >> 31)
    }
}
