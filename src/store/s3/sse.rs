//! The customer's own key for encryption by the server (SSE-C), in the three headers that every request for
//! the object's bytes must carry.

use std::fmt;
use std::path::Path;

use md5::{Digest, Md5};

use crate::store::{Error, ErrorKind};

/// Length of a key in bytes: AES-256.
const KEY_LEN: usize = 32;

/// A key in the form of the headers. `Debug` does not show it.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct CustomerKey {
    /// The key in base64.
    pub(super) key: String,
    /// MD5 of the key in base64.
    pub(super) md5: String,
}

impl fmt::Debug for CustomerKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("CustomerKey(***)")
    }
}

impl CustomerKey {
    /// Reads a key of 32 bytes in base64.
    pub(super) fn from_base64(text: &str) -> Option<CustomerKey> {
        let key = decode(text.as_bytes()).filter(|key| key.len() == KEY_LEN)?;
        Some(CustomerKey { md5: encode(&Md5::digest(&key)), key: encode(&key) })
    }

    /// Reads a key of 32 bytes from a file, raw or in base64.
    pub(super) fn read(path: &Path) -> Result<CustomerKey, Error> {
        let content = std::fs::read(path).map_err(|err| Error {
            kind: ErrorKind::Invalid,
            message: format!("cannot read sse-customer-key-path {}", path.display()),
            source: Some(err.into()),
            retry_after: None,
        })?;
        let key = if content.len() == KEY_LEN { Some(content) } else { decode(&content) };
        match key {
            Some(key) if key.len() == KEY_LEN => {
                Ok(CustomerKey { md5: encode(&Md5::digest(&key)), key: encode(&key) })
            }
            _ => Err(Error::new(
                ErrorKind::Invalid,
                format!(
                    "sse-customer-key-path {} must hold a key of {KEY_LEN} bytes, as they are or \
                     in base64",
                    path.display()
                ),
            )),
        }
    }
}

/// Adds the customer's key, if there is one, to a request.
macro_rules! with_customer_key {
    ($request:expr, $key:expr) => {{
        let key: Option<&$crate::store::s3::sse::CustomerKey> = $key;
        $request
            .set_sse_customer_algorithm(key.map(|_| "AES256".to_string()))
            .set_sse_customer_key(key.map(|key| key.key.clone()))
            .set_sse_customer_key_md5(key.map(|key| key.md5.clone()))
    }};
}
pub(super) use with_customer_key;

const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

/// Encodes bytes in base64 with padding (RFC 4648, section 4).
fn encode(bytes: &[u8]) -> String {
    let mut text = String::new();
    for group in bytes.chunks(3) {
        let word = group.iter().fold(0_u32, |word, &byte| word << 8 | u32::from(byte))
            << (8 * (3 - group.len()));
        for place in 0..4 {
            let six = (word >> (18 - 6 * place)) as usize & 63;
            text.push(if place <= group.len() { char::from(ALPHABET[six]) } else { '=' });
        }
    }
    text
}

/// Decodes a text in base64, without the white space around it.
fn decode(text: &[u8]) -> Option<Vec<u8>> {
    let text = text.trim_ascii();
    let text = text.strip_suffix(b"==").or_else(|| text.strip_suffix(b"=")).unwrap_or(text);
    let (mut bytes, mut word, mut bits) = (Vec::new(), 0_u32, 0);
    for letter in text {
        let six = ALPHABET.iter().position(|known| known == letter)?;
        word = (word << 6 | six as u32) & 0xffff;
        bits += 6;
        if bits >= 8 {
            bits -= 8;
            bytes.push((word >> bits) as u8);
        }
    }
    Some(bytes)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn base64_of_rfc_4648() {
        for (plain, text) in [
            ("", ""),
            ("f", "Zg=="),
            ("fo", "Zm8="),
            ("foo", "Zm9v"),
            ("foob", "Zm9vYg=="),
            ("fooba", "Zm9vYmE="),
            ("foobar", "Zm9vYmFy"),
        ] {
            assert_eq!(encode(plain.as_bytes()), text);
            assert_eq!(decode(format!(" {text}\n").as_bytes()), Some(plain.into()));
        }
        assert_eq!(decode(b"Zm9v!"), None);
    }

    #[test]
    fn keys_are_read_in_both_forms_and_never_shown() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("key");
        std::fs::write(&path, [7; 32]).unwrap();
        let raw = CustomerKey::read(&path).unwrap();
        std::fs::write(&path, format!("{}\n", raw.key)).unwrap();
        assert_eq!(CustomerKey::read(&path).unwrap().key, raw.key);
        // printf '\7%.0s' {1..32} | openssl md5 -binary | base64
        assert_eq!(raw.md5, MD5_OF_SEVENS);
        assert!(!format!("{raw:?}").contains(&raw.key));
        std::fs::write(&path, "too short").unwrap();
        assert_eq!(CustomerKey::read(&path).unwrap_err().kind, ErrorKind::Invalid);
        assert_eq!(
            CustomerKey::read(&folder.path().join("no")).unwrap_err().kind,
            ErrorKind::Invalid
        );
    }

    const MD5_OF_SEVENS: &str = "y4HAEFCYWuvAXWFTtA1Qpg==";
}
