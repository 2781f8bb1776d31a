pub(crate) mod document;
mod mesh;
mod peers;

use anyhow::Result;

/// Measure, and write what was measured into the documents.
#[derive(clap::Args, Debug)]
pub(crate) struct Args {
    #[command(subcommand)]
    bench: Bench,
}

#[derive(clap::Subcommand, Debug)]
enum Bench {
    Mesh(mesh::Args),
    Peers(peers::Args),
}

impl Args {
    pub(crate) fn run(self) -> Result<()> {
        match self.bench {
            Bench::Mesh(args) => args.run(),
            Bench::Peers(args) => args.run(),
        }
    }
}
