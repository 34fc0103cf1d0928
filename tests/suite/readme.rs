//! The README tells the truth: what it shows of the two programs is what they print. (Its sixteen lines
//! are in `transcript.rs`, and all that its reader does is in `page.rs`.)

use crate::programs::{CLIENT, Folder, SERVER, client, run, server};

const README: &str = include_str!("../../README.md");

/// A block of the README, and what is written in it.
pub struct Fence {
    pub language: &'static str,
    pub text: &'static str,
}

/// The blocks between two headings, in order.
pub fn fences_from(from: &str, to: &str) -> Vec<Fence> {
    let (_, part) = README.split_once(&format!("\n{from}")).unwrap();
    let (part, _) = part.split_once(&format!("\n{to}")).unwrap();
    blocks(part).collect()
}

fn blocks(page: &'static str) -> impl Iterator<Item = Fence> {
    let blocks = page.split("\n```").skip(1).step_by(2);
    let blocks = blocks.filter_map(|block| block.split_once('\n'));
    blocks.map(|(language, text)| Fence { language, text })
}

/// The blocks of a language.
fn fences(language: &str) -> Vec<&'static str> {
    let blocks = blocks(README).filter(|fence| fence.language == language);
    blocks.map(|fence| fence.text).collect()
}

/// The sixteen lines of a program, which begin so.
pub fn sixteen_lines(beginning: &str) -> Vec<&'static str> {
    let mut blocks = fences("text")
        .into_iter()
        .map(|block| -> Vec<_> { block.lines().collect() });
    let is_it = |block: &Vec<&str>| block.len() == 16 && block[0].starts_with(beginning);
    blocks.find(is_it).unwrap_or_default()
}

#[test]
fn help_is_as_printed() {
    for program in [SERVER, CLIENT] {
        let help = run(program, &["--help"]).assert_done().join("\n");
        assert!(
            fences("text").contains(&help.as_str()),
            "not in the README:\n{help}"
        );
    }
}

#[test]
fn the_servers_transcript_begins_as_printed() {
    let shown = fences("text")
        .into_iter()
        .find(|text| text.contains("\nSum: "))
        .unwrap();
    let folder = Folder::new();
    let mut server = server(&folder.socket());
    let one = client(&folder.socket(), &["--batches", "1"]);
    one.wait().assert_done();
    let printed = [
        format!("Listening on {}", shmem_test::SOCKET),
        server.err(),
        server.out(),
    ];
    assert_eq!(shown.lines().take(3).collect::<Vec<_>>(), printed);
}
