"""BibTeX of the methods that a report's rows use."""

from __future__ import annotations

from collections.abc import Iterable

# Key of the entry -> authors, title, year, arXiv's number; the address of a paper that is not there.
_PAPERS: dict[str, tuple[str, str, int, str]] = {
    "madry2018": (
        "Madry, Aleksander and Makelov, Aleksandar and Schmidt, Ludwig and Tsipras, Dimitris and Vladu, Adrian",
        "Towards Deep Learning Models Resistant to Adversarial Attacks", 2018, "1706.06083"),
    "zhang2019trades": (
        "Zhang, Hongyang and Yu, Yaodong and Jiao, Jiantao and Xing, Eric P. and El Ghaoui, Laurent and "
        "Jordan, Michael I.", "Theoretically Principled Trade-off between Robustness and Accuracy", 2019,
        "1901.08573"),
    "wang2020mart": (
        "Wang, Yisen and Zou, Difan and Yi, Jinfeng and Bailey, James and Ma, Xingjun and Gu, Quanquan",
        "Improving Adversarial Robustness Requires Revisiting Misclassified Examples", 2020,
        "https://openreview.net/forum?id=rklOg6EFwS"),
    "wu2020awp": (
        "Wu, Dongxian and Xia, Shu-Tao and Wang, Yisen",
        "Adversarial Weight Perturbation Helps Robust Generalization", 2020, "2004.05884"),
    "dejorge2022": (
        "de Jorge, Pau and Bibi, Adel and Volpi, Riccardo and Sanyal, Amartya and Torr, Philip H. S. and "
        "Rogez, Gr{\\'e}gory and Dokania, Puneet K.",
        "Make Some Noise: Reliable and Efficient Single-Step Adversarial Training", 2022, "2202.01181"),
    "wong2020": (
        "Wong, Eric and Rice, Leslie and Kolter, J. Zico",
        "Fast is better than free: Revisiting adversarial training", 2020, "2001.03994"),
    "szegedy2016": (
        "Szegedy, Christian and Vanhoucke, Vincent and Ioffe, Sergey and Shlens, Jonathon and Wojna, Zbigniew",
        "Rethinking the Inception Architecture for Computer Vision", 2016, "1512.00567"),
    "izmailov2018": (
        "Izmailov, Pavel and Podoprikhin, Dmitrii and Garipov, Timur and Vetrov, Dmitry and Wilson, Andrew "
        "Gordon", "Averaging Weights Leads to Wider Optima and Better Generalization", 2018, "1803.05407"),
    "bungert2021clip": (
        "Bungert, Leon and Raab, Ren{\\'e} and Roith, Tim and Schwinn, Leo and Tenbrinck, Daniel",
        "CLIP: Cheap Lipschitz Training of Neural Networks", 2021, "2103.12531"),
    "wang2018enresnet": (
        "Wang, Bao and Yuan, Binjie and Shi, Zuoqiang and Osher, Stanley J.",
        "ResNets Ensemble via the Feynman-Kac Formalism to Improve Natural and Robust Accuracies", 2018,
        "1811.10745"),
    "dinh2018rvsm": (
        "Dinh, Thu and Xin, Jack", "Convergence of a Relaxed Variable Splitting Method for Learning Sparse Neural "
        "Networks via l1, l0, and transformed-l1 Penalties", 2018, "1812.05719"),
    "dinh2019rvscgd": (
        "Dinh, Thu and Xin, Jack", "Convergence of a Relaxed Variable Splitting Coarse Gradient Descent Method for "
        "Learning Sparse Weight Binarized Activation Neural Network", 2019, "1901.09731"),
    "dinh2020rgsm": (
        "Dinh, Thu and Wang, Bao and Bertozzi, Andrea L. and Osher, Stanley J. and Xin, Jack",
        "Sparsity Meets Robustness: Channel Pruning for the Feynman-Kac Formalism Principled Robust Deep Neural Nets",
        2020, "2003.00631"),
    "piras2025": (
        "Piras, Giorgio and Zhao, Qi and Brau, Fabio and Pintor, Maura and Wressnegger, Christian and Biggio, "
        "Battista", "S2AP: Score-space Sharpness Minimization for Adversarial Pruning", 2025, "2510.18381"),
    "amini2024": (
        "Amini, Sajjad and Teymoorianfard, Mohammadreza and Ma, Shiqing and Houmansadr, Amir",
        "MeanSparse: Post-Training Robustness Enhancement Through Mean-Centered Feature Sparsification", 2024,
        "2406.05927"),
    "jacob2018": (
        "Jacob, Benoit and Kligys, Skirmantas and Chen, Bo and Zhu, Menglong and Tang, Matthew and Howard, "
        "Andrew and Adam, Hartwig and Kalenichenko, Dmitry", "Quantization and Training of Neural Networks for "
        "Efficient Integer-Arithmetic-Only Inference", 2018, "1712.05877"),
    "bungert2022": (
        "Bungert, Leon and Roith, Tim and Tenbrinck, Daniel and Burger, Martin",
        "A Bregman Learning Framework for Sparse Neural Networks", 2022, "2105.04319"),
    "zhang2018admm": (
        "Zhang, Tianyun and Ye, Shaokai and Zhang, Kaiqi and Tang, Jian and Wen, Wujie and Fardad, Makan and "
        "Wang, Yanzhi", "A Systematic DNN Weight Pruning Framework using Alternating Direction Method of "
        "Multipliers", 2018, "1804.03294"),
    "han2015": (
        "Han, Song and Pool, Jeff and Tran, John and Dally, William J.",
        "Learning both Weights and Connections for Efficient Neural Networks", 2015, "1506.02626"),
    "li2017": (
        "Li, Hao and Kadav, Asim and Durdanovic, Igor and Samet, Hanan and Graf, Hans Peter",
        "Pruning Filters for Efficient ConvNets", 2017, "1608.08710"),
    "liu2017": (
        "Liu, Zhuang and Li, Jianguo and Shen, Zhiqiang and Huang, Gao and Yan, Shoumeng and Zhang, Changshui",
        "Learning Efficient Convolutional Networks through Network Slimming", 2017, "1708.06519"),
    "sehwag2020": (
        "Sehwag, Vikash and Wang, Shiqi and Mittal, Prateek and Jana, Suman",
        "HYDRA: Pruning Adversarially Robust Neural Networks", 2020, "2002.10509"),
    "mocanu2018": (
        "Mocanu, Decebal Constantin and Mocanu, Elena and Stone, Peter and Nguyen, Phuong H. and Gibescu, "
        "Madeleine and Liotta, Antonio", "Scalable Training of Artificial Neural Networks with Adaptive Sparse "
        "Connectivity inspired by Network Science", 2018, "1707.04780"),
    "evci2020": (
        "Evci, Utku and Gale, Trevor and Menick, Jacob and Castro, Pablo Samuel and Elsen, Erich",
        "Rigging the Lottery: Making All Tickets Winners", 2020, "1911.11134"),
    "chen2022": (
        "Chen, Tianlong and Zhang, Zhenyu and Wang, Pengjun and Balachandra, Santosh and Ma, Haoyu and Wang, Zehao "
        "and Wang, Zhangyang", "Sparsity Winning Twice: Better Robust Generalization from More Efficient Training",
                 2022, "2202.09844"),
}  # fmt: skip
_OF = {
    "pgd_at": "madry2018", "trades": "zhang2019trades", "mart": "wang2020mart", "awp": "wu2020awp",
    "n_fgsm": "dejorge2022", "fgsm_rs": "wong2020",
    "label_smoothing": "szegedy2016", "ema": "izmailov2018", "clip": "bungert2021clip", "enresnet": "wang2018enresnet",
    "mean_sparse": "amini2024", "quantise": "jacob2018", "linbreg": "bungert2022", "adabreg": "bungert2022",
    "proxsgd": "bungert2022", "lasso": "bungert2022", "sparse_init": "bungert2022", "admm": "zhang2018admm",
    "hold_zeros": "han2015", "magnitude_prune": "han2015", "l1_filter_prune": "li2017", "network_slimming": "liu2017",
    "rvsm": "dinh2018rvsm", "rvscgd": "dinh2019rvscgd", "rgsm": "dinh2020rgsm", "s2ap": "piras2025",
    "hydra": "sehwag2020", "set": "mocanu2018", "rigl": "evci2020", "flying_bird": "chen2022",
}  # fmt: skip


def bibtex(methods: Iterable[str]) -> str:
    """Entries of these methods' papers, each once; a method without a paper here is named in a comment."""
    used = list(dict.fromkeys(methods))
    keys = sorted({_OF[m] for m in used if m in _OF})
    out = []
    for key in keys:
        authors, title, year, number = _PAPERS[key]
        mine = ", ".join(m for m in used if _OF.get(m) == key)
        fields = {
            "author": authors,
            "title": f"{{{title}}}",
            "year": str(year),
            **({"url": number} if "/" in number else {"eprint": number, "archiveprefix": "arXiv"}),
        }
        body = ",\n".join(f"  {k} = {{{v}}}" for k, v in fields.items())
        out.append(f"% {mine}\n@misc{{{key},\n{body}\n}}\n")
    without = sorted(m for m in used if m not in _OF)
    if without:
        out.append(f"% Without an entry here, see the head of each one's file: {', '.join(without)}\n")
    return "\n".join(out)
