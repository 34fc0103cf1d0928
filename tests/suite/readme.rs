//! The README tells the truth: its code is the code, its output the output. (That both transcripts
//! are what the programs print is in `transcript.rs`, which reads them from the README as well.)

use std::fs;

use crate::programs::{CLIENT, Folder, SERVER, client, run, server};

const README: &str = include_str!("../../README.md");

/// The fenced blocks of a language.
fn fences(language: &str) -> Vec<&'static str> {
    let blocks = README.split("\n```").skip(1).step_by(2);
    let blocks = blocks.filter_map(|block| block.split_once('\n'));
    blocks
        .filter(|(info, _)| *info == language)
        .map(|(_, text)| text)
        .collect()
}

/// The lines that begin so, from the first block of text with such lines.
pub fn lines(beginning: &str) -> Vec<&'static str> {
    let blocks = fences("text").into_iter();
    let mut lines = blocks.map(|block| -> Vec<_> {
        let lines = block.lines();
        lines.filter(|line| line.starts_with(beginning)).collect()
    });
    lines.find(|lines| !lines.is_empty()).unwrap_or_default()
}

#[test]
fn the_code_is_from_the_sources() {
    let sources: Vec<_> = fs::read_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/src"))
        .unwrap()
        .map(|file| fs::read_to_string(file.unwrap().path()).unwrap())
        .collect();
    let fences = fences("rust");
    assert!(!fences.is_empty());
    for code in fences {
        assert!(
            sources.iter().any(|source| source.contains(code)),
            "not in src/:\n{code}"
        );
    }
    // So are the lines that "Another item type" replaces.
    let diffs = self::fences("diff").concat();
    for line in diffs.lines().filter_map(|line| line.strip_prefix('-')) {
        assert!(
            sources.iter().any(|source| source.contains(line)),
            "not in src/:\n{line}"
        );
    }
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
