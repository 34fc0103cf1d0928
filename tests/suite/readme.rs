//! The pages tell the truth: what they show of the two programs is what these print. (The sixteen lines
//! are compared in `transcript.rs`, and all that a reader does in `page.rs`.)

use crate::programs::{CLIENT, Folder, SERVER, client, run, server};

pub const FRONT: &str = include_str!("../../README.md");
const REFERENCE: &str = include_str!("../../src/tutorial/8-reference/README.md");

/// A block of a page, and what is written in it.
pub struct Fence<'a> {
    pub language: &'a str,
    pub text: &'a str,
}

/// The blocks of a page, in order.
pub fn fences(page: &str) -> impl Iterator<Item = Fence<'_>> {
    let blocks = page.split("\n```").skip(1).step_by(2);
    let blocks = blocks.filter_map(|block| block.split_once('\n'));
    blocks.map(|(language, text)| Fence { language, text })
}

/// The first block of a page that begins so.
fn block<'a>(page: &'a str, beginning: &str) -> &'a str {
    let mut texts = fences(page).map(|fence| fence.text);
    texts.find(|text| text.starts_with(beginning)).unwrap()
}

/// The sixteen lines of a program, which begin so.
pub fn sixteen_lines(beginning: &str) -> Vec<&'static str> {
    block(REFERENCE, beginning).lines().collect()
}

#[test]
fn help_is_as_printed() {
    for (program, beginning) in [(SERVER, "Usage: server"), (CLIENT, "Usage: client")] {
        let help = run(program, &["--help"]).assert_done().join("\n");
        assert_eq!(block(REFERENCE, beginning), help);
    }
}

#[test]
fn the_servers_transcript_begins_as_printed() {
    let folder = Folder::new();
    let mut server = server(&folder.socket());
    let one = client(&folder.socket(), &["--batches", "1"]);
    one.wait().assert_done();
    let printed = [
        format!("Listening on {}", shmem_test::SOCKET),
        server.err(),
        server.out(),
    ];
    let shown = block(FRONT, "Listening on ").lines().take(3);
    assert_eq!(shown.collect::<Vec<_>>(), printed);
}
