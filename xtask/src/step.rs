//! Named steps that run in order until one fails.

use std::process::ExitCode;
use std::time::Instant;

/// A named action that must succeed.
pub(crate) struct Step {
    pub(crate) name: &'static str,
    pub(crate) run: Box<dyn FnOnce() -> Result<(), Failure>>,
}

/// Reason why a step failed.
#[derive(Debug)]
pub(crate) struct Failure {
    message: String,
    /// The exit code of the program that failed; 1 if none ran or it was ended by a signal.
    pub(crate) exit_code: u8,
}

impl Failure {
    pub(crate) fn new(message: impl Into<String>) -> Failure {
        Failure { message: message.into(), exit_code: 1 }
    }

    pub(crate) fn exited(message: String, code: Option<i32>) -> Failure {
        let exit_code = code.and_then(|code| u8::try_from(code).ok()).unwrap_or(1);
        Failure { message, exit_code }
    }
}

impl Step {
    pub(crate) fn new(
        name: &'static str,
        run: impl FnOnce() -> Result<(), Failure> + 'static,
    ) -> Step {
        Step { name, run: Box::new(run) }
    }
}

/// Runs the steps in order, with a heading and a time for each, and stops at the first failure.
pub(crate) fn run_all(steps: Vec<Step>) -> ExitCode {
    let started = Instant::now();
    let count = steps.len();
    let names: Vec<&str> = steps.iter().map(|step| step.name).collect();
    for (done, step) in steps.into_iter().enumerate() {
        println!("\n==> {}/{count} {}", done + 1, step.name);
        let step_started = Instant::now();
        let result = (step.run)();
        let seconds = step_started.elapsed().as_secs_f64();
        if let Err(failure) = result {
            println!("\nFAILED after {seconds:.1} s: {}: {}", step.name, failure.message);
            if done + 1 < count {
                println!("Not run: {}.", names[done + 1..].join(", "));
            }
            return ExitCode::from(failure.exit_code);
        }
        println!("    ok, {seconds:.1} s");
    }
    println!("\nAll {count} steps passed in {:.1} s.", started.elapsed().as_secs_f64());
    ExitCode::SUCCESS
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::rc::Rc;

    use super::*;

    #[test]
    fn the_first_failure_ends_it_with_its_exit_code() {
        let ran = Rc::new(Cell::new(0));
        let step = |code: Option<i32>| {
            let ran = Rc::clone(&ran);
            Step::new("step", move || {
                ran.set(ran.get() + 1);
                code.map_or(Ok(()), |code| Err(Failure::exited(String::new(), Some(code))))
            })
        };
        let code = run_all(vec![step(None), step(Some(101)), step(None)]);
        assert_eq!(code, ExitCode::from(101));
        assert_eq!(ran.get(), 2);
    }
}
