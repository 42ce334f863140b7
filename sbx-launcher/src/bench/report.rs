//! What a benchmark prints: a table, JSON, or a picture.

use std::fmt::Write;

use serde::Serialize;

/// One figure.
#[derive(Debug, Clone, Serialize)]
pub struct Row {
    /// What was measured.
    pub name: String,
    /// Its unit.
    pub unit: &'static str,
    /// Median of the rounds.
    pub median: f64,
    /// Smallest.
    pub min: f64,
    /// Largest.
    pub max: f64,
}

impl Row {
    /// A row of its samples, of which there is at least one.
    #[must_use]
    pub fn of(name: String, unit: &'static str, mut samples: Vec<f64>) -> Self {
        samples.sort_by(f64::total_cmp);
        let at = |index: usize| samples.get(index).copied().unwrap_or(f64::NAN);
        let last = samples.len().saturating_sub(1);
        Self { name, unit, median: at(samples.len() / 2), min: at(0), max: at(last) }
    }
}

/// A figure that is to be reached.
#[derive(Debug, Clone, Serialize)]
pub struct Goal {
    /// What is compared.
    pub name: String,
    /// What came out; none if a row is missing.
    pub value: Option<f64>,
    /// `<=` or `>=`.
    pub op: &'static str,
    /// The figure.
    pub goal: f64,
    /// Reached? None if it could not be measured.
    pub met: Option<bool>,
    /// Why it could not.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

/// All of one run.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    /// Name of the benchmark.
    pub bench: &'static str,
    /// The machine.
    pub machine: String,
    /// Rounds.
    pub rounds: usize,
    /// The figures.
    pub rows: Vec<Row>,
    /// What they are to reach.
    pub goals: Vec<Goal>,
}

impl Report {
    /// A report without goals.
    #[must_use]
    pub fn new(bench: &'static str, rounds: usize, rows: Vec<Row>) -> Self {
        Self { bench, machine: machine(), rounds, rows, goals: Vec::new() }
    }

    fn median(&self, name: &str) -> Option<f64> {
        self.rows.iter().find(|row| row.name == name).map(|row| row.median)
    }

    /// Add a goal: `value` makes its figure of the medians of the rows named.
    pub fn goal<const N: usize>(
        &mut self,
        name: &str,
        rows: [&str; N],
        value: impl FnOnce([f64; N]) -> f64,
        (op, goal): (&'static str, f64),
    ) {
        let missing = rows.iter().find(|row| self.median(row).is_none());
        let reason = missing.map(|row| format!("there is no row {row:?}"));
        let medians = rows.map(|row| self.median(row).unwrap_or(f64::NAN));
        let value = reason.is_none().then(|| value(medians));
        let met = value.map(|value| if op == "<=" { value <= goal } else { value >= goal });
        self.goals.push(Goal { name: name.to_owned(), value, op, goal, met, reason });
    }

    /// The goals that `rows` could not be measured for get this reason.
    pub fn explain(&mut self, row: &str, why: &str) {
        for goal in &mut self.goals {
            if goal.reason.as_ref().is_some_and(|reason| reason.contains(row)) {
                goal.reason = Some(why.to_owned());
            }
        }
    }

    /// A table.
    #[must_use]
    pub fn table(&self) -> String {
        let mut text = format!("{}: {} rounds on {}\n\n", self.bench, self.rounds, self.machine);
        let widest = |names: &mut dyn Iterator<Item = usize>| names.max().unwrap_or(0);
        let width = widest(&mut self.rows.iter().map(|row| row.name.chars().count()));
        for Row { name, unit, median, min, max } in &self.rows {
            let (median, min, max) = (number(*median), number(*min), number(*max));
            let _ = writeln!(text, "{name:width$} {median:>12} {unit:<5} ({min} to {max})");
        }
        if !self.goals.is_empty() {
            text.push('\n');
        }
        let width = widest(&mut self.goals.iter().map(|goal| goal.name.chars().count()));
        for Goal { name, value, op, goal, met, reason } in &self.goals {
            let value = value.map_or("-".into(), number);
            let verdict = match met {
                Some(true) => "met",
                Some(false) => "MISSED",
                None => reason.as_deref().unwrap_or("not measured"),
            };
            let goal = number(*goal);
            let _ = writeln!(text, "{name:width$} {value:>12} {op} {goal:<8} {verdict}");
        }
        text
    }

    /// A bar chart on a logarithmic scale.
    #[must_use]
    pub fn svg(&self) -> String {
        const BAR: usize = 22;
        const LEFT: usize = 300;
        const WIDTH: f64 = 420.0;
        let escape = |text: &str| text.replace('&', "&amp;").replace('<', "&lt;");
        let height = BAR * (self.rows.len() + 2);
        let logs = self.rows.iter().map(|row| row.median.max(1e-3).log10());
        let (low, high) =
            logs.fold((f64::MAX, f64::MIN), |(low, high), x| (low.min(x), high.max(x)));
        let scale = WIDTH / (high - low + 0.5).max(0.5);
        let mut svg = format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"860\" height=\"{height}\" \
             font-family=\"sans-serif\" font-size=\"13\">\n<text x=\"8\" y=\"16\">{} ({}), \
             logarithmic</text>\n",
            self.bench,
            escape(&self.machine)
        );
        for (index, row) in self.rows.iter().enumerate() {
            let y = BAR * (index + 1) + 8;
            let width = (row.median.max(1e-3).log10() - low + 0.4) * scale;
            let _ = writeln!(
                svg,
                "<text x=\"{}\" y=\"{}\" text-anchor=\"end\">{}</text>\
                 <rect x=\"{LEFT}\" y=\"{y}\" width=\"{width:.1}\" height=\"16\" fill=\"#47a\"/>\
                 <text x=\"{:.1}\" y=\"{}\">{} {}</text>",
                LEFT - 8,
                y + 13,
                escape(&row.name),
                LEFT as f64 + width + 6.0,
                y + 13,
                number(row.median),
                escape(row.unit)
            );
        }
        svg + "</svg>\n"
    }
}

/// Three figures, more or less.
fn number(value: f64) -> String {
    match value.abs() {
        size if size >= 1e5 => format!("{:.3}M", value / 1e6),
        size if size >= 100.0 => format!("{value:.0}"),
        size if size >= 10.0 => format!("{value:.1}"),
        _ => format!("{value:.2}"),
    }
}

fn machine() -> String {
    let read = |path| std::fs::read_to_string(path).unwrap_or_default();
    let cpus = read("/proc/cpuinfo");
    let model = cpus.lines().find_map(|line| line.strip_prefix("model name")?.split(": ").nth(1));
    let count = cpus.lines().filter(|line| line.starts_with("processor")).count();
    let kernel = read("/proc/sys/kernel/osrelease");
    format!("{count} x {}, Linux {}", model.unwrap_or("unknown CPU").trim(), kernel.trim())
}

#[cfg(test)]
mod tests {
    use super::{Report, Row};

    fn report() -> Report {
        let rows = vec![
            Row::of("a & <b>".into(), "ns", vec![3.0, 1.0, 2.0]),
            Row::of("c".into(), "ns", vec![10.0]),
        ];
        let mut report = Report::new("test", 3, rows);
        report.goal("c over a", ["a & <b>", "c"], |[a, c]| c / a, ("<=", 4.0));
        report.goal("c", ["c"], |[c]| c, (">=", 10.0));
        report.goal("peer", ["c", "absent"], |[c, peer]| c / peer, (">=", 1.0));
        report
    }

    #[test]
    fn medians_and_goals() {
        let mut report = report();
        let row = &report.rows[0];
        assert_eq!((row.median, row.min, row.max), (2.0, 1.0, 3.0));
        let met: Vec<_> = report.goals.iter().map(|goal| goal.met).collect();
        assert_eq!(met, [Some(false), Some(true), None]);
        report.explain("absent", "install peer");
        assert_eq!(report.goals[2].reason.as_deref(), Some("install peer"));
        let table = report.table();
        assert!(table.contains("MISSED") && table.contains("install peer"), "{table}");
    }

    #[test]
    fn a_picture_is_well_formed() {
        let svg = report().svg();
        assert!(svg.starts_with("<svg ") && svg.ends_with("</svg>\n"));
        assert_eq!(svg.matches("<rect").count(), 2);
        assert_eq!(svg.matches("<text").count(), svg.matches("</text>").count());
        assert!(svg.contains("a &amp; &lt;b>"));
    }
}
