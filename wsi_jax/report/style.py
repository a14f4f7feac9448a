"""The page's look: the reader's own font, light or dark, fit to print."""

CSS = """
:root { color-scheme: light dark; --ink: #1d2330; --soft: #5b6472; --line: #d9dde4;
  --paper: #ffffff; --card: #f6f7f9; --blue: #0072b2; --good: #00734f; --bad: #b83a00; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e9ef; --soft: #a0a9b8;
  --line: #363d4a; --paper: #14181f; --card: #1d222b; --blue: #5bb4e8; --good: #3cc79a;
  --bad: #ff9a66; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink);
  font: 16px/1.5 system-ui, "Segoe UI", "Liberation Sans", sans-serif; }
main, header, footer { max-width: 72rem; margin: 0 auto; padding: 0 1.5rem; }
header { padding-top: 2rem; }
h1 { font-size: 1.7rem; line-height: 1.2; margin: 0; }
h2 { font-size: 1.2rem; margin: 2.6rem 0 .8rem; padding-top: .6rem;
  border-top: 1px solid var(--line); }
h3 { font-size: 1rem; margin: 0; overflow-wrap: anywhere; }
p { margin: .4rem 0; max-width: 46rem; }
.soft, figcaption, caption { color: var(--soft); font-size: .9rem; }
nav a { color: var(--blue); margin-right: 1.1rem; font-size: .9rem; }
.skip { position: absolute; left: -99rem; } .skip:focus { left: 1rem; top: .5rem; }
.metrics { display: grid; gap: .8rem; margin: 1.2rem 0 0; padding: 0;
  grid-template-columns: repeat(auto-fill, minmax(11rem, 1fr)); }
.metrics > div { background: var(--card); border-radius: .5rem; padding: .8rem 1rem; }
.metrics dt { color: var(--soft); font-size: .9rem; }
.metrics dd { margin: 0; }
.value { font-size: 1.75rem; font-weight: 650; font-variant-numeric: tabular-nums; }
.range { color: var(--soft); font-size: .85rem; font-variant-numeric: tabular-nums; }
.track { position: relative; height: 6px; margin: .45rem 0 .1rem; border-radius: 3px;
  background: var(--line); }
.track i { position: absolute; top: 0; height: 6px; border-radius: 3px;
  background: var(--blue); opacity: .45; }
.track b { position: absolute; top: -3px; width: 4px; height: 12px; margin-left: -2px;
  border-radius: 2px; background: var(--blue); }
.figures { display: grid; gap: 1.2rem 2rem;
  grid-template-columns: repeat(auto-fit, minmax(19rem, 1fr)); align-items: start; }
figure { margin: 0; } figure.wide { grid-column: 1 / -1; }
figure svg { max-width: 100%; height: auto; display: block; }
figcaption { margin-bottom: .5rem; } figcaption strong { color: var(--ink); }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; margin: .4rem 0 1.4rem; font-size: .92rem;
  font-variant-numeric: tabular-nums; }
caption { text-align: left; padding-bottom: .35rem; }
th, td { padding: .3rem .9rem .3rem 0; text-align: right; white-space: nowrap;
  border-bottom: 1px solid var(--line); }
th:first-child, td:first-child, .text td, .text th { text-align: left; }
.text td { white-space: normal; overflow-wrap: anywhere; }
thead th { font-weight: 600; border-bottom: 2px solid var(--line); }
tbody th { font-weight: 500; }
.gallery { display: grid; gap: 1.2rem; padding: 0; margin: 1rem 0; list-style: none;
  align-items: start;
  grid-template-columns: repeat(auto-fit, minmax(min(100%, 30rem), 1fr)); }
.gallery li { background: var(--card); border-radius: .5rem; padding: .9rem 1rem;
  border-left: 4px solid var(--good); }
.gallery li.wrong { border-left-color: var(--bad); }
.gallery img { width: 100%; height: auto; margin-top: .6rem; border-radius: .25rem;
  background: #fff; display: block; }
.flag { font-weight: 600; color: var(--good); } .wrong .flag { color: var(--bad); }
details { margin: .6rem 0; } summary { cursor: pointer; color: var(--blue); }
code { font: .88rem/1.4 ui-monospace, "DejaVu Sans Mono", monospace; }
footer { margin: 3rem auto; padding-top: .8rem; border-top: 1px solid var(--line); }
@media print { nav { display: none; } .gallery li, figure { break-inside: avoid; } }
"""
