"""The style sheet of the HTML report. Colours come from the plots' palette, so that pictures and page agree."""

from __future__ import annotations

from coe.report.drawing import palette_css

CSS = (
    palette_css()
    + """
:root{--page:#f4f6f9}
@media (prefers-color-scheme:dark){:root{--page:#0e1219}}
*{box-sizing:border-box}
body{margin:0;background:var(--page);color:var(--ink);font:15px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,sans-serif;
 font-variant-numeric:tabular-nums}
main{max-width:1060px;margin:0 auto;padding:40px 24px 64px;display:grid;gap:20px}
header,section,footer{min-width:0}
.kicker{margin:0;color:var(--soft);font-size:12px;letter-spacing:.12em;text-transform:uppercase}
h1{margin:2px 0 4px;font-size:34px;line-height:1.15;letter-spacing:-.02em}
.sub{margin:0 0 22px;color:var(--soft)}
.cards{display:grid;grid-template-columns:repeat(auto-fit,minmax(215px,1fr));gap:14px}
.card{background:var(--paper);border:1px solid var(--line);border-left:4px solid var(--router);
 border-radius:10px;padding:14px 16px}
.card.good{border-left-color:var(--good)}
.card.bad{border-left-color:var(--bad)}
.label{color:var(--soft);font-size:13px}
.value{font-size:31px;font-weight:680;letter-spacing:-.02em;line-height:1.25}
.good .value{color:var(--good)}
.bad .value{color:var(--bad)}
.detail{color:var(--soft);font-size:12.5px;line-height:1.4}
section{background:var(--paper);border:1px solid var(--line);border-radius:12px;padding:20px 24px}
h2{margin:0 0 10px;font-size:17px;letter-spacing:-.01em}
figure{margin:6px 0 14px}
.plot{display:block;width:100%;height:auto;max-width:780px;margin:0 auto;overflow:visible}
.plot text{font-family:inherit!important}
figcaption{color:var(--soft);font-size:12.5px;text-align:center;margin-top:6px}
.scroll{overflow-x:auto}
table{border-collapse:collapse;width:100%;font-size:13.5px}
th{color:var(--soft);font-weight:500;font-size:12px;border-bottom:1px solid var(--line);white-space:nowrap;vertical-align:bottom}
td{border-bottom:1px solid var(--line);white-space:nowrap}
td.l{white-space:normal;min-width:5em}
th,td{padding:6px 9px}
th:first-child,td:first-child{padding-left:0}
th:last-child,td:last-child{padding-right:0}
tbody tr:last-child td{border-bottom:0}
.l{text-align:left}
.r{text-align:right}
tr.sum td{font-weight:680;border-bottom:2px solid var(--router)}
.savings tr.good td:last-child{color:var(--good);font-weight:600}
.savings tr.bad td:last-child{color:var(--bad);font-weight:600}
ul{margin:12px 0 0;padding-left:18px;color:var(--soft);font-size:13.5px}
.savings ul{margin:0 0 8px;padding:0;list-style:none;color:var(--ink);font-size:15.5px;font-weight:560}
li{margin:3px 0;overflow-wrap:anywhere}
.pill{display:inline-block;border-radius:99px;padding:0 10px;font-size:12px;font-weight:600;border:1px solid var(--router);
 color:var(--soft)}
.pill.kept{color:var(--good);border-color:var(--good)}
.pill.missed{color:var(--paper);background:var(--bad);border-color:var(--bad)}
footer{color:var(--soft);font-size:12px;text-align:center;padding-top:4px}
@media (max-width:760px){main{padding:24px 12px}section{padding:16px}}
@media print{body{background:none}main{padding:0;max-width:none}section,.card{break-inside:avoid}}
"""
)
