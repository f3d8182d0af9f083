//! `walferry completions` and `walferry man`: what shells and `man` want to know of the program.

use std::path::PathBuf;

use clap::{Command, CommandFactory};
use clap_complete::Shell;
use clap_mangen::Man;

use super::{Cli, Error, print, print_as_it_is};
use crate::local::Context as _;
use crate::shown;

/// Arguments of `walferry completions`.
#[derive(clap::Args)]
#[command(after_help = super::exit::help_with(&[
    "walferry completions bash > /etc/bash_completion.d/walferry",
    "walferry completions zsh > ~/.zfunc/_walferry",
    "walferry completions fish > ~/.config/fish/completions/walferry.fish",
]))]
pub(super) struct Completions {
    /// The shell
    shell: Shell,
}

/// Arguments of `walferry man`.
#[derive(clap::Args)]
#[command(after_help = super::exit::help_with(&["walferry man /usr/local/share/man/man1"]))]
pub(super) struct Pages {
    /// The folder to write the pages to; it is made if need be
    folder: PathBuf,
}

pub(super) fn complete(args: &Completions) -> Result<(), Error> {
    let mut text = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), "walferry", &mut text);
    print_as_it_is(&String::from_utf8_lossy(&text))
}

/// A page for the program and one for each subcommand.
pub(super) fn pages(args: &Pages) -> Result<(), Error> {
    std::fs::create_dir_all(&args.folder).context("cannot create", &args.folder)?;
    let mut command = Cli::command().disable_help_subcommand(true);
    command.build();
    let mut names = vec![page(&command, "walferry", &args.folder)?];
    for subcommand in command.get_subcommands().filter(|subcommand| !subcommand.is_hide_set()) {
        let name = ["walferry-", subcommand.get_name()].concat();
        names.push(page(subcommand, &name, &args.folder)?);
    }
    print(&shown::lines(names))
}

fn page(command: &Command, name: &str, folder: &std::path::Path) -> Result<String, Error> {
    let path = folder.join([name, ".1"].concat());
    let mut text = Vec::new();
    Man::new(command.clone()).title(name).render(&mut text).map_err(Error::Write)?;
    std::fs::write(&path, &text).context("cannot write", &path)?;
    Ok(path.display().to_string())
}
