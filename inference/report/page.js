// Light and dark, and the charts: every page has this script. Charts are drawn when they come into view.
'use strict';
(() => {
  const figures = JSON.parse(document.getElementById('figures').textContent);
  const root = document.documentElement;
  const button = document.getElementById('theme');
  const themes = ['system', 'light', 'dark'];
  const color = name => getComputedStyle(probe).getPropertyValue(name);

  // light-dark() is resolved where it is used as a colour, not in a variable: a hidden element uses each of them.
  const probe = document.createElement('span');
  probe.hidden = true;
  document.body.append(probe);
  function resolved(name) {
    probe.style.color = `var(${name})`;
    return color('color');
  }

  function template() {
    const [ink, soft, line, card, accent, second, third] =
      ['--ink', '--soft', '--line', '--card', '--accent', '--second', '--third'].map(resolved);
    const axis = {gridcolor: line, zerolinecolor: line, linecolor: line, automargin: true, tickfont: {color: ink},
      title: {font: {color: soft}, standoff: 8}};
    return {
      layout: {
        font: {family: getComputedStyle(document.body).fontFamily, size: 13, color: ink},
        paper_bgcolor: 'rgba(0,0,0,0)', plot_bgcolor: 'rgba(0,0,0,0)', colorway: [accent, second, third, soft],
        xaxis: axis, yaxis: axis, hoverlabel: {bgcolor: card, bordercolor: soft, font: {color: ink}},
        legend: {orientation: 'h', y: 1.02, yanchor: 'bottom', x: 0}, shapedefaults: {line: {color: soft}},
        modebar: {bgcolor: 'rgba(0,0,0,0)', color: soft, activecolor: ink}},
      data: {
        bar: [{marker: {line: {color: ink, width: 0.5}, pattern: {fillmode: 'overlay', fgopacity: 0.5, size: 6, solidity: 0.25}},
          textfont: {color: ink}}],
        scatter: [{marker: {line: {color: ink, width: 1}}}],
        heatmap: [{colorbar: {outlinewidth: 0, tickfont: {color: ink}}}]}};
  }

  function draw(plot) {
    const {data, layout} = figures[plot.dataset.figure];
    return Plotly.newPlot(plot, data, {dragmode: false, margin: {l: 8, r: 12, t: 8, b: 8}, ...layout,
      template: template()}, {responsive: true, displaylogo: false, displayModeBar: false, scrollZoom: false})
      .then(() => { plot.dataset.drawn = 'yes'; plot.dispatchEvent(new Event('drawn', {bubbles: true})); });
  }

  function redraw() {
    for (const plot of document.querySelectorAll('.plot[data-drawn]')) Plotly.relayout(plot, {template: template()});
  }

  function choose(theme, keep) {
    if (theme === 'system') delete root.dataset.theme; else root.dataset.theme = theme;
    button.textContent = `Theme: ${theme}`;
    if (keep) try { localStorage.setItem('theme', theme); } catch { /* a browser that keeps nothing for files */ }
    redraw();
  }
  let theme = 'system';
  try { theme = localStorage.getItem('theme') || 'system'; } catch { /* as above */ }
  choose(theme, false);
  button.addEventListener('click', () => {
    theme = themes[(themes.indexOf(theme) + 1) % themes.length];
    choose(theme, true);
  });
  matchMedia('(prefers-color-scheme: dark)').addEventListener('change', redraw);

  const plots = document.querySelectorAll('.plot');
  const start = () => {
    const seen = new IntersectionObserver(entries => {
      for (const entry of entries) if (entry.isIntersecting) { seen.unobserve(entry.target); draw(entry.target); }
    }, {rootMargin: '300px'});
    for (const plot of plots) seen.observe(plot);
  };
  if (plots.length) addEventListener('DOMContentLoaded', start);
  addEventListener('beforeprint', () => plots.forEach(plot => plot.dataset.drawn || draw(plot)));
})();
