//! Merges consecutive files into one, with each page in its newest version, in ascending order.

use std::io::{Read, Write};

use super::decode::Decoder;
use super::encode::{Encoded, Encoder};
use super::error::{Error, rule};
use super::header::Header;
use crate::units::Pgno;

/// One input of a merge: a decoder and its current page.
struct Input<R> {
    number: usize,
    decoder: Decoder<R>,
    at: Option<Pgno>,
}

/// Reason why files could not be merged.
#[derive(Debug)]
pub struct Broken {
    /// Number of the input that could not be read, if an input was the cause.
    pub input: Option<usize>,
    /// The error itself.
    pub source: Error,
}

impl From<Error> for Broken {
    fn from(source: Error) -> Broken {
        Broken { input: None, source }
    }
}

/// Merges files, oldest first, into one file with this header. Drops pages beyond the header's commit,
/// and copies compressed blocks without compressing them again. Checks every input's checksum.
pub fn merge<R: Read, W: Write>(
    inputs: Vec<Decoder<R>>,
    header: &Header,
    out: W,
) -> Result<(W, Encoded), Error> {
    let encoder = Encoder::new(out, header.page_size);
    merge_into(inputs, header, encoder, |_, _| ()).map_err(|broken| broken.source)
}

/// As [`merge`], with the caller's encoder. Calls `seen` with each page before writing the page. An
/// error names the input that caused the error.
pub fn merge_into<R: Read, W: Write>(
    inputs: Vec<Decoder<R>>,
    header: &Header,
    mut encoder: Encoder<W>,
    mut seen: impl FnMut(Pgno, &[u8]),
) -> Result<(W, Encoded), Broken> {
    let mut inputs: Vec<Input<R>> = inputs
        .into_iter()
        .enumerate()
        .map(|(number, decoder)| Input { number, decoder, at: Some(0) })
        .collect();
    // The current page of each input. Of several with the same number, the newest input's page wins.
    let mut images: Vec<Image> = Vec::new();
    for input in &mut inputs {
        if input.decoder.header().page_size != header.page_size {
            return Ok(rule("files of two page sizes in one merge")?);
        }
        images.push(Image::default());
    }
    for (input, image) in inputs.iter_mut().zip(&mut images) {
        input.advance(image)?;
    }
    while let Some(pgno) = inputs.iter().filter_map(|input| input.at).min() {
        let newest = inputs.iter().rposition(|input| input.at == Some(pgno));
        if let Some(image) = newest.and_then(|at| images.get(at))
            && pgno <= header.commit
        {
            seen(pgno, &image.data);
            image.write(pgno, &mut encoder)?;
        }
        for (input, image) in inputs.iter_mut().zip(&mut images) {
            if input.at == Some(pgno) {
                input.advance(image)?;
            }
        }
    }
    for Input { number, decoder, .. } in inputs {
        decoder.finish().map_err(|source| Broken { input: Some(number), source })?;
    }
    Ok(encoder.finish(header)?)
}

impl<R: Read> Input<R> {
    fn advance(&mut self, image: &mut Image) -> Result<(), Broken> {
        let broken = |source| Broken { input: Some(self.number), source };
        self.at = match self.decoder.next_page().map_err(broken)? {
            Some(page) => {
                image.data.clear();
                image.data.extend_from_slice(page.data);
                image.block.clear();
                image.block.extend_from_slice(page.block.unwrap_or_default());
                Some(page.pgno)
            }
            None => None,
        };
        Ok(())
    }
}

/// The current page of an input, while the merge compares its number with the other inputs' pages.
#[derive(Default)]
struct Image {
    data: Vec<u8>,
    block: Vec<u8>,
}

impl Image {
    fn write<W: Write>(&self, pgno: Pgno, encoder: &mut Encoder<W>) -> Result<(), Error> {
        if self.block.is_empty() {
            encoder.page(pgno, &self.data)
        } else {
            encoder.block(pgno, &self.block, &self.data)
        }
    }
}
