//! File names: `<min TXID>-<max TXID>.ltx`, sixteen lowercase hex digits each.

use std::fmt;

use crate::units::Txid;

/// The range of transactions in a file's name.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct FileName {
    /// First transaction.
    pub min: Txid,
    /// Last transaction.
    pub max: Txid,
}

impl FileName {
    /// Returns the name of a file that covers one transaction.
    pub fn single(txid: Txid) -> FileName {
        FileName { min: txid, max: txid }
    }

    /// Parses a name as Litestream does; `None` if the name is not exactly of this form.
    pub fn parse(name: &str) -> Option<FileName> {
        let (min, max) = name.strip_suffix(".ltx")?.split_once('-')?;
        let (min, max) = (Txid::parse_hex(min)?, Txid::parse_hex(max)?);
        (Txid::ZERO < min && min <= max).then_some(FileName { min, max })
    }
}

impl fmt::Display for FileName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}.ltx", self.min, self.max)
    }
}
