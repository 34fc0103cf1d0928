//! The reader's way through the tutorial: from an empty folder on, each file, change and command as
//! printed, and what one sees. `.ci/run` asks for it; it takes minutes and compiles new projects.

use std::env;
use std::fs::{self, File};
use std::os::unix::fs::symlink;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::programs::Folder;
use crate::readme::{FRONT, Fence, fences};

#[test]
#[ignore = "takes a while"]
fn front_page() {
    let (_, pair) = FRONT.split_once("\n## The smallest pair").unwrap();
    let mut reader = Reader::new();
    for fence in fences(pair) {
        match fence.language {
            // The two programs are the first chapter's.
            "rust" => {
                let (file, shown) = fence.text.split_once('\n').unwrap();
                let file = reader.clone.join(file.strip_prefix("// ").unwrap());
                assert_eq!(fs::read_to_string(file).unwrap().trim_end(), shown);
            }
            _ => reader.follow(&fence),
        }
    }
}

#[test]
#[ignore = "takes a while"]
fn chapter_1() {
    assert_eq!(Reader::new().read("1-by-hand"), 6);
}

#[test]
#[ignore = "takes a while"]
fn chapter_2() {
    assert_eq!(Reader::new().read("2-one-dies"), 22);
}

#[test]
#[ignore = "takes a while"]
fn chapter_3() {
    assert_eq!(Reader::new().read("3-all-arrives"), 19);
}

#[test]
#[ignore = "takes a while"]
fn chapter_4() {
    assert_eq!(Reader::new().read("4-how-they-meet"), 21);
}

/// And what the reader has in the end is right wherever it is used: its tests are green, each module
/// serves without the others, with an item of another size, and an item that the ring can't hold is
/// refused with a reason.
#[test]
#[ignore = "takes a while"]
fn chapter_5() {
    let mut reader = Reader::new();
    assert_eq!(reader.read("5-trust"), 11);
    let green = |reader: &mut Reader, tests: &str| {
        let said = reader.bash(tests);
        let good = said.contains("test result: ok") && !said.contains("warning");
        assert!(good && !said.contains("error"), "{said}");
    };
    green(&mut reader, "cargo test --quiet --release");
    let write_lib = |reader: &Reader, text: &str| {
        fs::write(reader.folder.join("src/lib.rs"), text).unwrap();
    };
    for module in ["socket", "handover", "ring", "peer"] {
        let item = "pub type Item = [u8; 4096];\npub const CAPACITY: usize = 1000;";
        write_lib(&reader, &format!("pub mod {module};\n{item}\n"));
        green(
            &mut reader,
            "cargo test --quiet --lib && cargo test --quiet --doc",
        );
    }
    let item = "#[derive(Clone, Copy, zerocopy::FromBytes, zerocopy::AsBytes)]
        #[repr(C, align(128))]
        pub struct Item([u8; 128]);
        pub const CAPACITY: usize = 1000;";
    write_lib(&reader, &format!("pub mod handover;\n{item}\n"));
    let said = reader.bash("cargo add --quiet zerocopy@0.3 && cargo build --quiet --lib");
    assert!(said.contains("align `Item` to no more"), "{said}");
}

#[test]
#[ignore = "takes a while"]
fn chapter_6() {
    let mut reader = Reader::new();
    assert_eq!(reader.read("6-recipes"), 30);
    // What no waiting heals is not tried again.
    let said = reader.bash(
        "cd ../restart; rm -f first.sock; touch first.sock
        timeout 5 target/release/client 1; echo status of the client: $?",
    );
    assert!(
        said.contains("no socket\nstatus of the client: 1"),
        "{said}"
    );
}

/// Somebody who types every change, copies every file, runs every command, and looks at what is printed.
struct Reader {
    /// For as long as the reader reads.
    _home: Folder,
    clone: PathBuf,
    /// Where the last command has gone.
    folder: PathBuf,
    /// The files that were typed since the last command.
    typed: Vec<(PathBuf, String)>,
    /// The last commands that ran one of the programs.
    script: String,
    /// What they printed, unless something has changed since.
    said: Option<String>,
}

impl Reader {
    /// With a clone of this repository, and nothing else but what cargo would build first of all: the
    /// three crates. So they are built once, and not in each chapter.
    fn new() -> Self {
        let home = Folder::new();
        let built = Path::new(env!("CARGO_TARGET_TMPDIR")).join("first");
        let build = "set -e; mkdir -p $1/src $2/first; cp $3/Cargo.toml $1; echo >$1/src/lib.rs
            cd $1; cargo build --quiet --release; cp -r target $2/first";
        let mut bash = Command::new("bash");
        bash.args(["-c", build, "bash"]).arg(built).arg(home.path());
        bash.arg(concat!(
            env!("CARGO_MANIFEST_DIR"),
            "/src/tutorial/1-by-hand"
        ));
        bash.env_remove("CARGO_TARGET_DIR");
        assert!(bash.status().unwrap().success());
        let clone = home.join("shmem-test");
        fs::create_dir(&clone).unwrap();
        symlink(
            concat!(env!("CARGO_MANIFEST_DIR"), "/src"),
            clone.join("src"),
        )
        .unwrap();
        Self {
            _home: home,
            folder: clone.clone(),
            clone,
            typed: vec![],
            script: String::new(),
            said: None,
        }
    }

    /// Reads a chapter, and returns how many of its blocks are something to do or to see.
    fn read(&mut self, chapter: &str) -> usize {
        let page = self
            .clone
            .join("src/tutorial")
            .join(chapter)
            .join("README.md");
        let page = fs::read_to_string(page).unwrap();
        let is_drawing = |fence: &Fence| {
            let drawn = ["│", "├", "──►", "look, then ask"];
            fence.language == "text" && drawn.iter().any(|part| fence.text.contains(part))
        };
        let fences = fences(&page).filter(|fence| !is_drawing(fence));
        fences.map(|fence| self.follow(&fence)).count()
    }

    fn follow(&mut self, fence: &Fence) {
        println!("{}:\n{}", fence.language, fence.text);
        match fence.language {
            "rust" => {
                let (file, text) = fence.text.split_once('\n').unwrap();
                self.type_file(file, |_| format!("{text}\n"));
            }
            "diff" => {
                let (file, changes) = fence.text.split_once('\n').unwrap();
                self.type_file(file, |text| changed(text, changes));
            }
            "sh" => self.run(fence.text),
            "text" if self.script.is_empty() => {} // A tool is missing here.
            "text" => {
                // "Run the same commands again."
                let said = match &self.said {
                    Some(said) => said.clone(),
                    None => self.bash(&self.script.clone()),
                };
                compare(fence.text, &said);
                self.said = Some(said);
            }
            other => panic!("what is {other} for?\n{}", fence.text),
        }
    }

    /// `file` is a comment with the path.
    fn type_file(&mut self, file: &str, text: impl FnOnce(&str) -> String) {
        let path = self.folder.join(file.trim().strip_prefix("// ").unwrap());
        let text = text(&fs::read_to_string(&path).unwrap_or_default());
        fs::write(&path, &text).unwrap();
        self.typed.push((path, text));
    }

    fn run(&mut self, script: &str) {
        let runs = script.contains("target/release/");
        let has = |tool: &&str| {
            let paths = env::var_os("PATH").unwrap_or_default();
            env::split_paths(&paths).any(|path| path.join(tool).exists())
        };
        let uses = |tool: &&str| script.split_whitespace().any(|word| word == *tool);
        if ["strace", "ps"]
            .iter()
            .filter(|&t| uses(t))
            .any(|tool| !has(tool))
        {
            self.script.clear();
            return;
        }
        let said = self.bash(script);
        let failed = ["error:", "error[", "warning:", "cp:"];
        assert!(!failed.iter().any(|word| said.contains(word)), "{said}");
        if runs {
            self.script = script.to_string();
        }
        self.said = runs.then_some(said);
        // Whoever types has the same as whoever copies.
        for (path, text) in self.typed.drain(..) {
            assert_eq!(text, fs::read_to_string(&path).unwrap(), "{path:?}");
        }
    }

    /// Runs commands as in a terminal, in which `cd` lasts, and ends what they leave running.
    fn bash(&mut self, script: &str) -> String {
        let output = self.clone.join("output");
        let folder = self.clone.join("folder");
        let file = File::create(&output).unwrap();
        let mut bash = Command::new("bash");
        let script = format!("{script}\npwd >{}", folder.display());
        bash.args(["-c", &script]).current_dir(&self.folder);
        bash.env_remove("RUST_BACKTRACE");
        bash.env_remove("CARGO_TARGET_DIR");
        bash.env("CARGO_TERM_QUIET", "true");
        bash.stdin(Stdio::null());
        bash.stdout(file.try_clone().unwrap()).stderr(file);
        let mut bash = bash.process_group(0).spawn().unwrap();
        let group = bash.id();
        bash.wait().unwrap();
        let kill = format!("kill -9 -- -{group} 2>/dev/null; true");
        Command::new("bash").args(["-c", &kill]).status().unwrap();
        self.folder = Path::new(fs::read_to_string(folder).unwrap().trim()).into();
        let said = fs::read_to_string(output).unwrap();
        println!("--- printed:\n{said}---");
        said
    }
}

/// `text` with the lines that begin with `-` replaced by those with `+`, in each part between two `@@`.
/// Each part fits one place only.
fn changed(text: &str, changes: &str) -> String {
    let mut parts: Vec<Vec<&str>> = vec![vec![]];
    for line in changes.lines() {
        match line.strip_prefix("@@") {
            Some(_) => parts.push(vec![]),
            None => parts.last_mut().unwrap().push(line),
        }
    }
    parts.retain(|part| !part.is_empty());
    parts.into_iter().fold(text.to_string(), |text, part| {
        // An empty line is one that stays, and that lost its space in front.
        let side = |sign: char| -> String {
            let lines = part
                .iter()
                .filter(|l| l.is_empty() || l.starts_with([' ', sign]));
            lines
                .map(|l| format!("{}\n", l.get(1..).unwrap_or("")))
                .collect()
        };
        let (old, new) = (side('-'), side('+'));
        assert_eq!(text.matches(&old).count(), 1, "{old}\nin\n{text}");
        text.replacen(&old, &new, 1)
    })
}

/// What the programs print, which has to be the same to the digit.
const PRINTED: [&str; 9] = [
    "Sending ",
    "Sum: ",
    "The client ",
    "A client ",
    "Error",
    "status ",
    "Trying ",
    "Frame ",
    "3",
];

/// Each program's lines are there in their order. All other lines are there, too; their numbers may
/// differ, and whatever the page has added or left out.
fn compare(shown: &str, said: &str) {
    for beginning in PRINTED {
        let mut lines = said.lines().filter(|line| line.starts_with(beginning));
        for shown in shown.lines().filter(|line| line.starts_with(beginning)) {
            assert!(
                lines.any(|line| line == shown),
                "{shown:?} is not in its place in\n{said}"
            );
        }
    }
    for line in shown.lines() {
        let shown = without_numbers(line);
        let is_said = said
            .lines()
            .any(|line| without_numbers(line).contains(&shown));
        assert!(is_said, "{line:?} is not in\n{said}");
    }
}

/// A line up to where the page shortens it or makes a remark, each number as one `#`.
fn without_numbers(line: &str) -> String {
    let ends = [") = ", "\"...", " ..."];
    let shortened = ends
        .iter()
        .fold(line, |line, end| line.split(end).next().unwrap());
    let words = shortened.split_whitespace().collect::<Vec<_>>().join(" ");
    let mut plain = String::new();
    for c in words.chars() {
        // Addresses have letters between their digits.
        let number = c.is_ascii_digit() || (plain.ends_with('#') && c.is_ascii_hexdigit());
        match number {
            true if plain.ends_with('#') => {}
            true => plain.push('#'),
            false => plain.push(c),
        }
    }
    plain
}
