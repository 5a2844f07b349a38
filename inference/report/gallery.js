// The gallery of a report and the viewer of one image. Data: see inference/report/page.py.
'use strict';
(() => {
  const data = JSON.parse(document.getElementById('images-data').textContent);
  const {names, colors, layers, images, truth, scales, scaleColors} = data;
  const K = names.length;
  const CHUNK = 60;  // cards that are made at once
  const $ = id => document.getElementById(id);
  const make = (tag, properties = {}, ...children) => {
    const element = Object.assign(document.createElement(tag), properties);
    element.append(...children);
    return element;
  };
  const percent = (value, digits = 1) => value === null ? '–' : `${(100 * value).toFixed(digits)} %`;
  const state = {sort: truth ? 'score' : 'confidence', class: '', worst: true, confusion: null, thumbs: 'prediction',
    order: [], shown: 0, at: 0, left: 'input', right: 'prediction', only: null};

  // ---------------------------------------------------------------- what an image is sorted by

  // m: [cell, pixels, ...] of the confusion matrix; a cell is ground truth * K + prediction.
  function pixels(image, wanted) {
    let found = 0, all = 0;
    for (let i = 0; i < image.m.length; i += 2) {
      const actual = Math.floor(image.m[i] / K), predicted = image.m[i] % K;
      all += image.m[i + 1];
      if (wanted(actual, predicted)) found += image.m[i + 1];
    }
    return all ? found / all : null;
  }
  const chosen = () => state.class === '' ? null : Number(state.class);
  const SORTS = {
    score: {words: () => chosen() === null ? 'mIoU' : `IoU of ${names[chosen()]}`, lowIsWorst: true,
      of: image => chosen() === null ? image.s : image.i[chosen()]},
    errors: {words: () => chosen() === null ? 'wrong pixels' : `${names[chosen()]}: missed or wrongly found`,
      of: image => pixels(image, (a, p) => a !== p && (chosen() === null || a === chosen() || p === chosen()))},
    confusion: {words: () => `${names[state.confusion[0]]} predicted as ${names[state.confusion[1]]}`,
      of: image => pixels(image, (a, p) => a === state.confusion[0] && p === state.confusion[1])},
    confidence: {words: () => 'mean confidence', lowIsWorst: true, of: image => image.c},
    share: {words: () => chosen() === null ? 'largest class' : `share of ${names[chosen()]}`, size: true,
      of: image => chosen() === null ? Math.max(...image.p) : image.p[chosen()]},
    name: {words: () => 'name'}};
  const TITLES = {score: 'IoU', errors: 'errors', confusion: 'one confusion', confidence: 'confidence',
    share: 'share of a class', name: 'name'};

  function arrange() {
    const key = SORTS[state.sort];
    const wanted = $('find').value.trim().toLowerCase();
    let order = images.map((_, index) => index).filter(index => images[index].n.toLowerCase().includes(wanted));
    if (key.of) {
      const value = new Map(order.map(index => [index, key.of(images[index])]));
      const sign = state.worst === Boolean(key.lowIsWorst) ? 1 : -1;
      order.sort((a, b) => {  // what is undefined comes last either way
        const x = value.get(a), y = value.get(b);
        return x === null || y === null ? (x === null) - (y === null) || a - b : sign * (x - y) || a - b;
      });
    } else {
      order.sort((a, b) => (state.worst ? 1 : -1) * images[a].n.localeCompare(images[b].n, 'en', {numeric: true}));
    }
    state.order = order;
    const [first, second] = !key.of ? ['A to Z', 'Z to A'] : key.size ? ['largest first', 'smallest first']
      : ['worst first', 'best first'];
    $('order').textContent = `⇅ ${state.worst ? first : second}`;
    $('count').textContent = `${order.length} of ${images.length} images by ${key.words()}, `
      + `${state.worst ? first : second}`;
    $('gallery').replaceChildren();
    state.shown = 0;
    more();
  }

  function card(index, place) {
    const image = images[index];
    const key = SORTS[state.sort].of ? SORTS[state.sort] : SORTS[truth ? 'score' : 'confidence'];
    const value = key.of(image);
    const button = make('button', {type: 'button', className: 'open'},
      // `loading` before `src`: in this order alone, Chromium waits in a page that is opened again, too.
      make('img', {loading: 'lazy', decoding: 'async', src: `${image.d}/thumb_${state.thumbs}.jpg`, alt: ''}),
      make('span', {className: 'words'}, make('span', {className: 'name', textContent: image.n, title: image.n}),
        make('span', {className: 'key', textContent: key.words()}),
        make('span', {className: 'value', textContent: percent(value)}),
        make('span', {className: 'meter', style: `--value:${value ?? 0}`})));
    button.dataset.place = place;
    return make('li', {}, button);
  }

  function more() {
    const end = Math.min(state.shown + CHUNK, state.order.length);
    for (; state.shown < end; state.shown++) $('gallery').append(card(state.order[state.shown], state.shown));
    const left = state.order.length - state.shown;
    $('more').hidden = left === 0;
    $('more').textContent = `Show ${Math.min(CHUNK, left)} more of ${left}`;
  }

  function sortByConfusion(actual, predicted) {
    state.confusion = [actual, predicted];
    if (!$('sort').querySelector('[value=confusion]')) $('sort').append(new Option(TITLES.confusion, 'confusion'));
    $('sort').value = state.sort = 'confusion';
    state.worst = true;
    arrange();
    $('images').scrollIntoView();
  }

  // ---------------------------------------------------------------- one image

  const layerOf = key => layers.find(layer => layer.key === key) ?? layers[0];
  const file = (image, layer) => `${image.d}/${layer.file}`;

  const inImage = (image, k) => image.p[k] > 0 || (truth && image.i[k] !== null);

  // Of a picture of classes, `state.only` alone: a filter knows it by its colour, which no script may read from a file.
  function paint(side, image, layer) {
    const [photo, over] = $(side).children;
    over.classList.toggle('only', layer.kind === 'labels' && state.only !== null && inImage(image, state.only));
    photo.src = file(image, layers[0]);
    if (layer.kind === 'photo') over.removeAttribute('src'); else over.src = file(image, layer);
    $(`${side}-title`).textContent = layer.title;
    $(`${side}-choice`).value = layer.key;
  }

  function show(place) {
    state.at = place;
    const image = images[state.order[place]];
    const [height, width] = image.h;
    $('viewer-name').textContent = image.n;
    $('viewer-place').textContent = `${place + 1} of ${state.order.length}`;
    const dialog = $('viewer');
    dialog.style.setProperty('--ratio', `${width} / ${height}`);
    dialog.style.setProperty('--number', width / height);
    dialog.style.setProperty('--pixels', `${width}px`);
    $('strip').replaceChildren(...layers.map((layer, i) => {
      const small = make('span', {className: 'small'}, make('img', {src: file(image, layers[0]), alt: ''}));
      if (layer.kind !== 'photo') small.append(make('img', {src: file(image, layer), alt: ''}));
      const button = make('button', {type: 'button'}, small, `${i < 9 ? `${i + 1} ` : ''}${layer.title}`);
      button.addEventListener('click', event => pick(event.shiftKey ? 'left' : 'right', layer.key));
      button.dataset.key = layer.key;
      return button;
    }));
    $('viewer-scores').replaceChildren(...scores(image));
    pick();
    if (!dialog.open) dialog.showModal();
    history.replaceState(null, '', `#image-${image.x}`);
    const next = images[state.order[place + 1]];
    if (next) for (const key of ['input', state.left, state.right]) new Image().src = file(next, layerOf(key));
  }

  function pick(side, key) {
    if (side) state[side] = key;
    const image = images[state.order[state.at]];
    for (const part of ['left', 'right']) paint(part, image, layerOf(state[part]));
    for (const button of $('strip').children) button.ariaPressed = String(button.dataset.key === state.right);
    const kinds = new Set([layerOf(state.left).kind, layerOf(state.right).kind]);
    $('viewer-legend').replaceChildren(...legends(image, kinds));
  }

  const swatch = (color, words, kind = '') => {
    const mark = make('i', {className: kind});
    if (color) mark.style.background = `rgb(${color})`;
    return make('li', {}, mark, words);
  };

  function legends(image, kinds) {
    const parts = [];
    if (kinds.has('labels')) {
      parts.push(make('p', {className: 'soft', textContent: 'Press a class to see it alone.'}),
        make('ul', {className: 'legend'}, ...names.map((_, k) => k).filter(k => inImage(image, k)).map(k => {
          const button = make('button', {type: 'button', ariaPressed: String(k === state.only)},
            ...swatch(colors[k], names[k]).childNodes);
          button.addEventListener('click', () => {
            state.only = k === state.only ? null : k;
            $('only-color').setAttribute('flood-color', `rgb(${colors[k]})`);
            const place = [...$('viewer-legend').querySelectorAll('button')].indexOf(button);
            pick();
            $('viewer-legend').querySelectorAll('button')[place].focus();
          });
          return make('li', {}, button);
        })));
    }
    if (kinds.has('errors')) {
      parts.push(make('ul', {className: 'legend'}, swatch(null, 'wrong', 'stripes'), swatch(null, 'right', 'veil'),
        swatch(null, 'not labelled', 'void')));
    }
    if (kinds.has('map')) parts.push(make('p', {className: 'scalebar'}, '0', make('i'), '1'));
    if (kinds.has('scales')) {
      parts.push(make('ul', {className: 'legend'}, ...scales.map((scale, i) => swatch(scaleColors[i],
        `scale ${scale} decided ${percent(image.e[i])} of the pixels`))));
    }
    return parts;
  }

  function table(header, rows) {
    const row = (cells, tag) => make('tr', {}, ...cells.map((cell, i) => {
      const element = make(tag, {className: i ? '' : 'left'});
      element.append(cell);
      return element;
    }));
    return make('div', {className: 'scroll'}, make('table', {}, make('thead', {}, row(header, 'th')),
      make('tbody', {}, ...rows.map(cells => row(cells, 'td')))));
  }

  function scores(image) {
    const label = k => make('span', {className: 'class'}, swatch(colors[k], names[k]).firstChild, names[k]);
    const known = k => truth ? image.i[k] !== null : image.p[k] > 0;
    const rows = names.map((_, k) => k).filter(known).sort((a, b) =>
      truth ? image.i[a] - image.i[b] : image.p[b] - image.p[a]);
    const words = [truth ? `mIoU ${percent(image.s)}, accuracy ${percent(image.a)}, ` : '',
      `mean confidence ${percent(image.c)}`].join('');
    const parts = [make('div', {}, make('p', {textContent: words}), table(
      truth ? ['class', 'IoU', 'predicted'] : ['class', 'share'],
      rows.map(k => truth ? [label(k), percent(image.i[k]), percent(image.p[k])] : [label(k), percent(image.p[k], 2)])))];
    if (truth) {
      const cells = [];
      let all = 0;
      for (let i = 0; i < image.m.length; i += 2) {
        all += image.m[i + 1];
        if (Math.floor(image.m[i] / K) !== image.m[i] % K) cells.push([image.m[i], image.m[i + 1]]);
      }
      cells.sort((a, b) => b[1] - a[1]);
      parts.push(make('div', {}, make('p', {textContent: 'Largest errors, shares of the labelled pixels'}), table(
        ['ground truth', 'predicted as', 'share'], cells.slice(0, 8).map(([cell, count]) =>
          [label(Math.floor(cell / K)), label(cell % K), percent(count / all, 2)]))));
    }
    return parts;
  }

  const slide = value => {
    $('slider').value = value;
    $('stage').style.setProperty('--cut', `${$('slider').value}%`);
    $('slider').setAttribute('aria-valuetext', `${$('slider').value} % of the width shows the left picture`);
  };
  const zoom = () => $('zoom').setAttribute('aria-pressed', String($('stage').classList.toggle('actual')));

  function step(by) {
    const place = state.at + by;
    if (place < 0 || place >= state.order.length) return;
    while (place >= state.shown) more();
    show(place);
  }

  // ---------------------------------------------------------------- what happens when

  function start() {
    const fill = (id, entries) => $(id).append(...entries.map(([value, words]) => new Option(words, value)));
    fill('sort', (truth ? ['score', 'errors', 'confidence', 'name'] : ['confidence', 'share', 'name'])
      .map(key => [key, TITLES[key]]));
    fill('class', names.map((name, k) => [k, name]));
    fill('thumbs', [['prediction', 'prediction'], ['input', 'input'], ...(truth ? [['errors', 'errors']] : [])]);
    for (const side of ['left', 'right']) {
      fill(`${side}-choice`, layers.map(layer => [layer.key, layer.title]));
      $(`${side}-choice`).addEventListener('change', event => pick(side, event.target.value));
    }
    $('slider').setAttribute('aria-label', 'Border between the left and the right picture');
    for (const [id, key] of [['sort', 'sort'], ['class', 'class'], ['thumbs', 'thumbs']]) {
      $(id).addEventListener('change', event => { state[key] = event.target.value; arrange(); });
    }
    $('class').addEventListener('change', () => {  // a class means its IoU, or its share
      if (!['score', 'errors', 'share'].includes(state.sort) && state.class !== '') {
        $('sort').value = state.sort = truth ? 'score' : 'share';
        arrange();
      }
    });
    $('order').addEventListener('click', () => { state.worst = !state.worst; arrange(); });
    $('find').addEventListener('input', arrange);
    $('more').addEventListener('click', more);
    new IntersectionObserver(entries => entries.some(entry => entry.isIntersecting) && more(), {rootMargin: '600px'})
      .observe($('more'));
    $('gallery').addEventListener('click', event => {
      const button = event.target.closest('.open');
      if (button) show(Number(button.dataset.place));
    });
    $('gallery').addEventListener('keydown', event => {
      const columns = getComputedStyle($('gallery')).gridTemplateColumns.split(' ').length;
      const by = {ArrowLeft: -1, ArrowRight: 1, ArrowUp: -columns, ArrowDown: columns}[event.key];
      const button = by && $('gallery').children[Number(document.activeElement.dataset.place) + by]?.firstChild;
      if (button) { event.preventDefault(); button.focus(); }
    });
    for (const button of document.querySelectorAll('[data-actual]')) {
      button.addEventListener('click', () => sortByConfusion(Number(button.dataset.actual),
        Number(button.dataset.predicted)));
    }
    document.addEventListener('drawn', event => {
      if (event.target.dataset.figure === 'confusion') event.target.on('plotly_click', ({points: [point]}) =>
        sortByConfusion(point.y, point.x));
    });

    $('previous').addEventListener('click', () => step(-1));
    $('next').addEventListener('click', () => step(1));
    $('close').addEventListener('click', () => $('viewer').close());
    $('zoom').addEventListener('click', zoom);
    $('slider').addEventListener('input', event => slide(event.target.value));
    $('blend').addEventListener('input', event => $('viewer').style.setProperty('--blend', event.target.value / 100));
    $('viewer').addEventListener('close', () => {
      history.replaceState(null, '', '#images');
      $('gallery').children[state.at]?.firstChild.focus();
    });
    const drag = event => {
      const box = $('stage').getBoundingClientRect();
      slide(Math.round(100 * (event.clientX - box.left) / box.width));
    };
    $('stage').addEventListener('pointerdown', event => {
      event.preventDefault();
      $('stage').setPointerCapture(event.pointerId);
      drag(event);
    });
    $('stage').addEventListener('pointermove', event => event.buttons && drag(event));
    document.addEventListener('keydown', event => {  // wherever the focus is
      if (!$('viewer').open || event.ctrlKey || event.altKey || event.metaKey || event.target.matches('select')) return;
      const digit = /^(?:Digit|Numpad)([1-9])$/.exec(event.code);
      if (digit && layers[digit[1] - 1]) pick(event.shiftKey ? 'left' : 'right', layers[digit[1] - 1].key);
      else if (event.key === 'ArrowLeft' && event.target.type !== 'range') step(-1);
      else if (event.key === 'ArrowRight' && event.target.type !== 'range') step(1);
      else if (event.key === ',') slide(Number($('slider').value) - 5);
      else if (event.key === '.') slide(Number($('slider').value) + 5);
      else if (event.key.toLowerCase() === 'z') zoom();
      else return;
      event.preventDefault();
    });
    slide(50);
    arrange();
    const asked = /^#image-(\d+)$/.exec(location.hash);
    const place = asked && state.order.findIndex(index => images[index].x === Number(asked[1]));
    if (asked && place >= 0) show(place);
  }
  start();
})();
