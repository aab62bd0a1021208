/* A page or section whose title has every word of the query comes first. */
var Scorer = {
  score: (result) => {
    const [, title, , , score] = result;
    const query = (new URLSearchParams(window.location.search).get("q") || "").toLowerCase();
    const words = query.split(/\s+/).filter(Boolean);
    return score + (words.length && words.every((word) => title.toLowerCase().includes(word)) ? 50 : 0);
  },
  objNameMatch: 11,
  objPrio: { 0: 15, 1: 5, 2: -5 },
  objPrioDefault: 0,
  title: 15,
  partialTitle: 7,
  term: 5,
  partialTerm: 2,
};
